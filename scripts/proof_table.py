"""Sums up the records that the proving tests left in target/proof: a table for people, and target/proof.json.

Fails when a promise did not hold, a budget was not reached, or a technique left no record.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "target"
GUARANTEES = ROOT / "docs" / "guarantees.md"
TECHNIQUES = {
    "loom": "interleavings of the map, the gate and the flights, each tried to its end",
    "exploration": "states of the gate, all histories of a small scope",
    "simulation": "runs of the engine in virtual time, against the model",
    "shuttle": "schedules of the engine's threads",
    "nth-fault": "backups in which the nth operation failed",
    "power-loss": "images that a power cut may leave",
    "kill": "kill -9 at named points",
    "damage": "flipped bits of manifests and images",
    "mutants": "planted faults, each to be found",
    "fuzzing": "inputs to what parses what others wrote",
    "golden": "backups of earlier versions, verified and restored",
}


_BUDGET = re.compile(r"^\| (?P<technique>[a-z-]+) \| (?P<budget>[\d,]+) \|", re.MULTILINE)


def budgets(guarantees: str) -> dict[str, int]:
    """What the document says that each technique does at least."""
    return {row["technique"]: int(row["budget"].replace(",", "")) for row in _BUDGET.finditer(guarantees)}


@dataclass
class Technique:
    """A way of looking for a broken promise, and what its tests recorded."""

    name: str
    records: list[dict[str, int]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def add(self, test: str, record: dict[str, int]) -> None:
        """Adds what one test recorded."""
        self.records.append(record)
        if record["executed"] < record["budget"]:
            self.complaints.append(f"{self.name}: {test} did {record['executed']:,} of {record['budget']:,}")
        if record["violations"]:
            self.complaints.append(f"{self.name}: {test} found {record['violations']:,} violations")

    def total(self, key: str) -> int:
        """The sum of one figure over its tests."""
        return sum(record[key] for record in self.records)


def main() -> None:
    """Reads, prints, writes, and complains."""
    techniques = {name: Technique(name) for name in TECHNIQUES}
    for path in sorted((TARGET / "proof").glob("*.json")):
        record = json.loads(path.read_text())
        technique, test = record.pop("technique"), record.pop("test")
        if technique not in techniques:
            sys.exit(f"proof: {test} tells of a technique that {Path(__file__).name} does not know: {technique}")
        techniques[technique].add(test, record)

    row = "{:<12} {:>12} {:>12} {:>10}  {}\n".format
    sys.stdout.write(row("technique", "budget", "executed", "violations", "what was tried"))
    table = []
    for name, technique in techniques.items():
        totals = {key: technique.total(key) for key in ("budget", "executed", "violations")}
        sys.stdout.write(row(name, *(f"{total:,}" for total in totals.values()), TECHNIQUES[name]))
        table.append({"technique": name, **totals})
    (TARGET / "proof.json").write_text(json.dumps(table, indent=2) + "\n")

    said = budgets(GUARANTEES.read_text())
    wrong = [
        f"{name}: {GUARANTEES.name} says {said.get(name, 0):,}, the tests say {technique.total('budget'):,}"
        for name, technique in techniques.items()
        if technique.total("budget") != said.get(name)
    ]
    silent = [f"{name}: no test of it ran" for name, technique in techniques.items() if not technique.records]
    complaints = silent + wrong + [complaint for technique in techniques.values() for complaint in technique.complaints]
    if complaints:
        sys.exit("\n".join(f"proof: {complaint}" for complaint in complaints))


if __name__ == "__main__":
    main()
