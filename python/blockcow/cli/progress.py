"""Shows how far a verb has come: a bar on a terminal, JSON lines, or a line on SIGUSR1. stdout stays for data."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from blockcow.cli.verb import STATUS_WANTED, print_json, say
from blockcow.status import SCHEMA
from blockcow.units import format_size

MODES = ("auto", "none", "json")
_JSON_EVERY = 1.0  # seconds


class _Rate(ProgressColumn):
    """Bytes a second in the units that blockcow uses everywhere."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{format_size(speed)}/s", style="progress.data.speed")


class Meter:
    """One verb's progress. A context manager; `update` is cheap enough for ten times a second."""

    def __init__(self, label: str, mode: str, as_json: bool) -> None:
        self._label = label
        self._as_json = as_json
        self._lines = mode == "json" or (as_json and mode == "auto")
        self._next_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = _bar(console) if mode == "auto" and console.is_terminal else None
        self._task = None if self._bar is None else self._bar.add_task(label, total=None, note="")

    def update(self, done: int, total: int, note: str, figures: Callable[[], Any]) -> None:
        """Shows that ``done`` of ``total`` bytes are done. ``figures`` gives the fields of a JSON line."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        if self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _JSON_EVERY
            self._print(figures())
        if STATUS_WANTED.is_set():
            STATUS_WANTED.clear()
            share = 100 if total == 0 else 100 * done // total
            amount = f"{format_size(done)} of {format_size(total)} done"
            self._say(", ".join(part for part in (f"{self._label}: {share}%", amount, note) if part))

    def _print(self, figures: Any) -> None:
        if self._as_json:
            print_json("status", figures)
            return
        line = {"message_type": "status", "schema": SCHEMA, **msgspec.to_builtins(figures)}
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            say(line)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        refresh_per_second=5,
    )


def option_progress(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options --progress and --json of a verb."""
    function = click.option(
        "--progress", type=click.Choice(MODES), default="auto", show_default=True, help="auto: a bar on a terminal."
    )(function)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")(function)
