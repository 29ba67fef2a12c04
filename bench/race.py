"""Contestants that do the same work in turns, so that a noisy machine hurts all alike, and the figures that come of it.

What the work is stands in `test_bench.py`.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """What one contestant reached in all rounds."""

    contestant: str
    rounds: list[float]

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> str:
        return f"{min(self.rounds):,.4g} to {max(self.rounds):,.4g}"


@dataclass(frozen=True)
class Goal:
    """A bound, and what was measured against it."""

    measure: str
    bound: float
    reached: float
    better: Literal["more", "less"] = "more"

    @property
    def met(self) -> bool:
        return self.reached >= self.bound if self.better == "more" else self.reached <= self.bound


@dataclass
class Result:
    """One figure of a scenario: what was measured, in which unit, by whom, and the goals that go with it."""

    scenario: str
    measure: str
    unit: str
    figures: list[Figure]
    goals: list[Goal] = field(default_factory=list)
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By contestant, what `latency.Trace.for_plots` gives of one round."""

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "measure": self.measure,
            "unit": self.unit,
            "figures": [asdict(figure) | {"median": figure.median} for figure in self.figures],
            "goals": [asdict(goal) | {"met": goal.met} for goal in self.goals],
            "plots": self.plots,
        }


class Race:
    """Runs each contestant once a round; who goes first moves on by one each time."""

    def __init__(self, contestants: dict[str, Callable[[], dict[str, float]]]) -> None:
        self._contestants = list(contestants.items())
        self._reached: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def round(self) -> None:
        for name, run in self._contestants:
            for measure, value in run().items():
                self._reached[name, measure].append(value)
        self._contestants.append(self._contestants.pop(0))

    def measures(self) -> list[str]:
        """What was measured, in the order in which it came."""
        return list(dict.fromkeys(measure for _, measure in self._reached))

    def figures(self, measure: str) -> dict[str, Figure]:
        return {name: Figure(name, rounds) for (name, of), rounds in self._reached.items() if of == measure}
