"""Starts a daemon: takes the name, cleans what a dead one left, starts the keeper, waits for its word."""

import json
import os
import subprocess
import sys
from typing import Any

import msgspec

from blockcow.daemon import keeper
from blockcow.daemon.clean import clean
from blockcow.daemon.folders import Config, RunFolder
from blockcow.errors import rebuilt

_LONGEST_REPORT = 1 << 20


def attach(folder: RunFolder, config: Config, lock: int) -> dict[str, Any]:
    """Starts a daemon in the background and returns its report once it is ready. Raises; then nothing is left.

    The folder's lock, which the caller holds, goes to the keeper.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    command = _command(folder, config, lock, writing, str(folder.log))
    with open(folder.log, "ab") as log:  # noqa: PTH123 - of the keeper, and bounded by it
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock, writing],
            start_new_session=True,
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        data = report.read(_LONGEST_REPORT)
    if data:
        said: dict[str, Any] = json.loads(data)
        if "ready" in said:
            ready: dict[str, Any] = said["ready"]
            return ready
        process.wait()
        error = rebuilt(said["error"])
    else:
        process.wait()
        error = OSError(f"the daemon ended with status {process.returncode}: {_last_words(folder)}")
    clean(folder)
    raise error


def attach_in_foreground(folder: RunFolder, config: Config, lock: int) -> None:
    """This process becomes the keeper."""
    os.set_inheritable(lock, True)
    command = _command(folder, config, lock, -1, "")
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def _command(folder: RunFolder, config: Config, lock: int, report: int, log: str) -> list[str]:
    text = msgspec.json.encode(config).decode()
    return [sys.executable, "-I", "-S", keeper.__file__, str(folder.path), text, str(lock), str(report), log]


def _last_words(folder: RunFolder) -> str:
    try:
        lines = folder.log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no word"
    return lines[-1] if lines else "it left no word"
