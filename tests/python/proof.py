"""What the proving tests share: a tally of what each tried, in the form that `scripts/proof_table.py` sums up."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_FOLDER = Path(os.environ.get("BLOCKCOW_PROOF", Path(__file__).parent.parent.parent / "target" / "proof"))


@dataclass
class Tally:
    """What a test did for a technique, and how often a promise did not hold."""

    technique: str
    test: str
    budget: int
    executed: int = 0
    violations: int = 0


@contextmanager
def tallied(technique: str, test: str, budget: int) -> Iterator[Tally]:
    """A tally that is written down at the end of the test; an exception counts as a violation."""
    tally = Tally(technique, test, budget)
    try:
        yield tally
    except BaseException:
        tally.violations += 1
        raise
    finally:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        (_FOLDER / f"{technique}--{test}.json").write_text(json.dumps(asdict(tally)) + "\n")
