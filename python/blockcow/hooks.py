"""Commands of the user around the cut, with a time limit: for a database's own checkpoint. Knows nothing of backups."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from blockcow._blockcow import BlockcowError, StateError
from blockcow.errors import failure
from blockcow.units import format_time

_MOST_OUTPUT = 2000  # characters of it that are shown


@contextmanager
def around(before: str | None, after: str | None, timeout: float, warn: Callable[[str], None]) -> Iterator[None]:
    """Runs ``before``, then the block, then ``after``, each for at most ``timeout`` seconds.

    A ``before`` that fails raises StateError and the block does not run. ``after`` runs whatever happened, also when
    ``before`` failed midway; its own failure is only a warning.
    """
    try:
        if before is not None:
            run("before-cut", before, timeout)
        yield
    finally:
        if after is not None:
            try:
                run("after-cut", after, timeout)
            except BlockcowError as error:
                warn(str(error))


def run(name: str, command: str, timeout: float) -> None:
    """Runs a shell command. Raises StateError with what it printed if it fails or takes too long; then it is killed
    with all that it started in its process group."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout)
            outcome = None if code == 0 else f"it ended with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"it took longer than {format_time(timeout)} and was killed (see --hook-timeout)"
            _kill(process)
        except BaseException:
            _kill(process)
            raise
        if outcome is None:
            return
        output.seek(0)
        said = output.read()[-_MOST_OUTPUT:].decode(errors="replace").strip()
    printed = f"; it printed: {said}" if said else "; it printed nothing"
    raise failure(StateError, f"run the {name} command {command!r}", f"{outcome}{printed}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
