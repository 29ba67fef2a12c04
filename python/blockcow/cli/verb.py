"""What all verbs share: exit codes, errors as one or two lines, signals. Knows no verb."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
import msgspec

from blockcow import __version__
from blockcow._blockcow import BusyError, MismatchError
from blockcow.errors import expected_text, fields_of
from blockcow.status import SCHEMA

FAILURE, USAGE, WARNINGS, BUSY, BROKEN, MISMATCH = 1, 2, 3, 11, 20, 21

STATUS_WANTED = threading.Event()
"""Set by SIGUSR1: whoever shows progress prints the status once and clears it."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came. Not an Exception: nothing may mistake it for a failure and go on."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number

    def fields(self) -> dict[str, Any]:
        """As the fields of a JSON line."""
        unknown = {"operation": None, "errno": None, "offset": None}
        return {"kind": "cancelled", **unknown, "message": f"ended by {self}", "exit_code": self.exit_code}


class VerbFailedError(Exception):
    """A verb has said what went wrong, and ends with this exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Verb(click.Command):
    """A click command whose failures are one clear message and the exit code of the design."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb with the signals that end it turned into `Interrupted`."""
        as_json = bool(ctx.params.get("as_json"))
        try:
            with _signals_as_exceptions():
                return super().invoke(ctx)
        except VerbFailedError as failed:
            ctx.exit(failed.exit_code)
        except Interrupted as interrupted:
            if as_json:
                print_json("error", interrupted.fields())
            say(f"blockcow: ended by {interrupted}")
            ctx.exit(interrupted.exit_code)
        except (click.exceptions.Exit, click.UsageError, BrokenPipeError):
            raise
        except Exception as error:
            code = exit_code_of(error)
            if as_json:
                print_json("error", error_fields(error) | {"exit_code": code})
            say_error(error)
            ctx.exit(code)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Interrupted`, once; SIGUSR1 sets STATUS_WANTED."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for one in ending:
            signal.signal(one, signal.SIG_IGN)  # cleaning up is under way: a second Ctrl-C must not end it half done
        raise Interrupted(number)

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it stays ignored
        ending.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in ending}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda _number, _frame: STATUS_WANTED.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_of(error: Exception) -> int:
    """The exit code that stands for ``error``."""
    if isinstance(error, BusyError):
        return BUSY
    if isinstance(error, MismatchError):
        return MISMATCH
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return USAGE
    return FAILURE


def error_fields(error: Exception) -> dict[str, Any]:
    """An error as the fields of a JSON line."""
    return fields_of(error) | {"message": _text(error)}


def say_error(error: Exception) -> None:
    """Prints ``blockcow: ...`` on stderr; with BLOCKCOW_DEBUG=1 the traceback as well."""
    if os.environ.get("BLOCKCOW_DEBUG") == "1":
        traceback.print_exception(error)
    click.echo(f"blockcow: {_text(error)}", err=True)


def _text(error: Exception) -> str:
    if (text := expected_text(error)) is not None:
        return text
    what = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    return (
        f"unexpected {what}; this is a defect of blockcow {__version__}: run again with BLOCKCOW_DEBUG=1 and report it"
    )


def print_json(message_type: str, fields: Any) -> None:
    """One JSON object on a line of stdout."""
    line = {"message_type": message_type, "schema": SCHEMA, **msgspec.to_builtins(fields)}
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """A line for people, on stderr."""
    click.echo(line, err=True)
