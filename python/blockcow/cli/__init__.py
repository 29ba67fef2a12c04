"""The command line: `main` and the group of verbs. Each verb has a file of its own."""

import os
import sys

import click

from blockcow import __version__
from blockcow.cli import verb
from blockcow.cli.attach import attach
from blockcow.cli.backup import backup
from blockcow.cli.completion import completion
from blockcow.cli.demo import demo
from blockcow.cli.detach import detach
from blockcow.cli.devices import devices
from blockcow.cli.restart import restart
from blockcow.cli.restore import restore
from blockcow.cli.status import status
from blockcow.cli.verify import verify

_EPILOG = """Every option has an environment variable: BLOCKCOW_BACKUP_CBW_TIMEOUT is --cbw-timeout of backup.

Exit codes: 0 complete, 1 failure, 2 usage, 3 warnings under --strict, 11 device busy, 20 backup broken,
21 verify mismatch, 130 and 143 signals."""


@click.group(
    context_settings={
        "auto_envvar_prefix": "BLOCKCOW",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="blockcow")
def cli() -> None:
    """Backs up a block device while programs keep writing to it.

    Try 'blockcow demo' first, then 'blockcow devices'.
    """


for command in (devices, attach, detach, status, restart, backup, verify, restore, demo, completion):
    cli.add_command(command)


def main() -> None:
    """The entry point of the `blockcow` program."""
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(prog_name="blockcow", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return verb.USAGE
    except click.UsageError as error:
        hint = f"; try '{error.ctx.command_path} --help'" if error.ctx else ""
        return _fail(error, f"{error.format_message().rstrip('.')}{hint}", verb.USAGE)
    except click.ClickException as error:
        return _fail(error, error.format_message(), verb.FAILURE)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # who reads our output has gone; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return verb.FAILURE
    except Exception as error:
        verb.say_error(error)
        return verb.exit_code_of(error)
    return result if isinstance(result, int) else 0


def _fail(error: Exception, message: str, code: int) -> int:
    if "--json" in sys.argv:
        verb.print_json("error", verb.error_fields(error) | {"kind": "usage", "message": message, "exit_code": code})
    verb.say(f"blockcow: {message}")
    return code
