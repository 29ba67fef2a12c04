"""The faults of docs/mutants.md: they are those in the code, and each is found by the test named beside it."""

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from proof import tallied

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "docs" / "mutants.md"
BUDGET = 25
PATIENCE = 60.0  # seconds; a test that is not over then hangs, which also finds the fault
WORKERS = 2
CRATES = ("engine", "frontends")

_ROW = re.compile(r"^\| `(?P<name>[\w-]+)` \| .* \| `(?P<file>[\w/.]+)::(?P<test>\w+)` \|$", re.MULTILINE)
_PLANTED = re.compile(r"\bplanted\(\s*\"(?P<name>[\w-]+)\"\s*\)")


@dataclass(frozen=True)
class Mutant:
    """A planted fault, and the test that finds it."""

    name: str
    file: str
    test: str


def mutants() -> list[Mutant]:
    return [Mutant(row["name"], row["file"], row["test"]) for row in _ROW.finditer(TABLE.read_text())]


def test_the_table_names_the_faults_that_are_planted_and_tests_that_are_there() -> None:
    sources = [path for crate in CRATES for path in (ROOT / "rust" / crate / "src").rglob("*.rs")]
    planted = {found["name"] for path in sources for found in _PLANTED.finditer(path.read_text())}
    names = [mutant.name for mutant in mutants()]
    assert sorted(names) == sorted(planted)
    for mutant in mutants():
        assert re.search(rf"\bfn {mutant.test}\b", (ROOT / mutant.file).read_text()), mutant


def binaries() -> dict[str, Path]:
    """The test programs of both crates with the faults in them, by crate and target; ``lib`` holds the unit tests."""
    found = {}
    for crate in CRATES:
        command = ["cargo", "test", "--no-run", "--message-format", "json", "--quiet", "--package", f"blockcow-{crate}"]
        command += ["--features", "mutants", "--target-dir", str(ROOT / "target" / "mutants")]
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        for line in built.stdout.splitlines():
            message = json.loads(line)
            if message["reason"] == "compiler-artifact" and message["executable"] and message["profile"]["test"]:
                kind, name = message["target"]["kind"][0], message["target"]["name"]
                found[f"{crate}/{name if kind == 'test' else 'lib'}"] = Path(message["executable"])
    return found


def program_of(mutant: Mutant) -> str:
    """``engine/backup`` for ``rust/engine/tests/backup/cut.rs``, ``engine/lib`` for what is in ``rust/engine/src``."""
    _, crate, place, target, *_ = mutant.file.split("/")
    return f"{crate}/{'lib' if place == 'src' else target.removesuffix('.rs')}"


def passes(program: Path, test: str, mutant: str | None) -> bool:
    """Whether the test ran and passed in time."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    (path,) = re.findall(rf"^((?:\w+::)*{test}): test$", listed, re.MULTILINE)
    environment = {**os.environ, **({"BLOCKCOW_MUTANT": mutant} if mutant else {})}
    try:
        ran = subprocess.run(
            [program, path, "--exact", "--include-ignored"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_every_planted_fault_is_found() -> None:
    programs, planted = binaries(), mutants()
    with tallied("mutants", "every_planted_fault_is_found", BUDGET) as tally, ThreadPoolExecutor(WORKERS) as pool:

        def passes_without(mutant: Mutant) -> bool:
            return passes(programs[program_of(mutant)], mutant.test, None)

        def passes_with(mutant: Mutant) -> bool:
            return passes(programs[program_of(mutant)], mutant.test, mutant.name)

        once = list({(mutant.file, mutant.test): mutant for mutant in planted}.values())
        unsound = [mutant.test for mutant, sound in zip(once, pool.map(passes_without, once), strict=True) if not sound]
        assert not unsound, "these fail without a fault"
        survivors = [one.name for one, alive in zip(planted, pool.map(passes_with, planted), strict=True) if alive]
        tally.executed, tally.violations = len(planted) - len(survivors), len(survivors)
    assert not survivors
