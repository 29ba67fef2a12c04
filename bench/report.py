"""Draws the results of a run as one HTML page that needs nothing else: goals, tables, and plots as SVG.

`python bench/report.py RESULTS.json > REPORT.html` draws a run again.
"""

import io
import json
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("svg")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em; text-align: left; vertical-align: top }
td.number { text-align: right } small { color: #777 } .missed { color: #b00020; font-weight: 600 }
svg { max-width: 100%; height: auto }
"""
_COLOURS = {"blockcow": "#0b6e4f", "QEMU push": "#c1440e", "QEMU fleecing": "#3d5a98"}


def _axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, alpha=0.3)


def _latency(axes: Axes, name: str, plot: dict[str, Any]) -> None:
    highest = [value or float("nan") for value in plot["highest_ms"]]
    axes.plot(plot["at_s"], highest, lw=0.9, label=name, c=_COLOURS.get(name))


def _distribution(axes: Axes, name: str, plot: dict[str, Any]) -> None:
    labels = [f"{percent:g}" for percent, _ in plot["percentiles"]]
    axes.plot(labels, [value for _, value in plot["percentiles"]], marker="o", ms=3, label=name, c=_COLOURS.get(name))


def _fill(axes: Axes, name: str, plot: dict[str, Any]) -> None:
    times, sizes = [at for at, _ in plot["fill"]], [size / (1 << 20) for _, size in plot["fill"]]
    axes.plot(times, sizes, lw=1, label=name, c=_COLOURS.get(name))


def _rate(axes: Axes, name: str, plot: dict[str, Any]) -> None:
    axes.plot(plot["at_s"], plot["rate"], lw=0.9, label=name, c=_COLOURS.get(name))


_PANELS: list[tuple[str, str, str, bool, Callable[[Axes, str, dict[str, Any]], None]]] = [
    ("Longest write", "seconds since the backup began", "ms", True, _latency),
    ("Latency of the writes during the backup", "percentile", "ms", True, _distribution),
    ("Container", "seconds since the backup began", "MiB", False, _fill),
    ("Writes", "seconds since the backup began", "1/s", False, _rate),
]


def _draw(plots: dict[str, dict[str, Any]]) -> str:
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (title, x, y, logarithmic, draw) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        _axes(axes, title, x, y)
        for name, plot in plots.items():
            draw(axes, name, plot)
        if logarithmic:
            axes.set_yscale("log")
        axes.legend(fontsize=8)
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    return svg.getvalue().split("?>", 1)[-1].split('.dtd">', 1)[-1]


def _table(results: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(figure["contestant"] for result in results for figure in result["figures"]))
    rows = ["<tr><th></th><th>unit</th>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"]
    for result in results:
        figures = {figure["contestant"]: figure for figure in result["figures"]}
        cells = [
            f"<td class=number>{figures[name]['median']:,.4g}<br><small>{min(figures[name]['rounds']):,.4g} to "
            f"{max(figures[name]['rounds']):,.4g}</small></td>"
            if name in figures
            else "<td></td>"
            for name in names
        ]
        rows.append(f"<tr><td>{escape(result['measure'])}</td><td>{escape(result['unit'])}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _goals(results: list[dict[str, Any]]) -> str:
    rows = ["<tr><th>scenario</th><th>measure</th><th>goal</th><th>measured</th><th></th></tr>"]
    for result in results:
        for goal in result["goals"]:
            sign = "at least" if goal["better"] == "more" else "at most"
            outcome = "reached" if goal["met"] else "<span class=missed>missed</span>"
            rows.append(
                f"<tr><td>{escape(result['scenario'])}</td><td>{escape(result['measure'])}</td>"
                f"<td>{escape(goal['measure'])} {sign} {goal['bound']:g}</td>"
                f"<td class=number>{goal['reached']:,.4g}</td><td>{outcome}</td></tr>"
            )
    return f"<table>{''.join(rows)}</table>"


def report(run: dict[str, Any]) -> str:
    """The page of a run, from what `conftest.py` writes to results.json."""
    results = run["results"]
    parts = ["<h1>blockcow beside the others</h1>"]
    parts.append("<p>Medians of all rounds, and the lowest and the highest round. Plots show the last round.</p>")
    parts.append(f"<p>QEMU {escape(run['qemu'])}.{' A quick run: its figures mean nothing.' * run['quick']}</p>")
    parts += ["<h2>Goals</h2>", _goals(results)]
    for scenario in dict.fromkeys(result["scenario"] for result in results):
        own = [result for result in results if result["scenario"] == scenario]
        parts += [f"<h2>{escape(scenario)}</h2>", _table(own)]
        for result in own:
            if plots := result["plots"]:
                outcomes = "; ".join(f"{name}: {plot['outcome']}" for name, plot in plots.items())
                parts += [_draw(plots), f"<p>Last round: {escape(outcomes)}</p>"]
    return f"<!doctype html><meta charset=utf-8><title>blockcow</title><style>{_STYLE}</style>{''.join(parts)}\n"


if __name__ == "__main__":
    sys.stdout.write(report(json.loads(Path(sys.argv[1]).read_text())))
