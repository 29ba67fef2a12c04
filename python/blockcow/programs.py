"""Runs the small programs of util-linux that know disks better than we do. A missing one is an answer."""

import os
import shutil
import subprocess
from collections.abc import Sequence

_SECONDS = 30.0
_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"  # administrators' programs are not on everybody's PATH


def where(name: str) -> str | None:
    """Full path of a program, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PLACES}")


def run(name: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """The finished process, or None where the program is missing. Raises TimeoutError if it hangs."""
    program = where(name)
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{name} gave no answer within {_SECONDS:.0f} s") from error
