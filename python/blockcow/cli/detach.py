"""`blockcow detach`: takes the daemon away that stands in front of devices, and cleans up after one that was killed."""

import click

from blockcow._blockcow import BlockcowError, BusyError
from blockcow.cli.verb import FAILURE, Verb, VerbFailedError, print_json, say
from blockcow.daemon import folders
from blockcow.daemon.clean import clean
from blockcow.daemon.client import Client
from blockcow.errors import failure

_PATIENCE = 20.0  # seconds


@click.command(cls=Verb)
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Cancel backups and cut off programs that use a device; they get errors.")
@click.option("--clean", "cleaning", is_flag=True, help="Remove what a killed daemon left; of all, or of NAME.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def detach(name: str | None, force: bool, cleaning: bool, as_json: bool) -> None:
    """Detaches NAME (or its device): everything is written, and the devices are let go.

    Refuses while something is mounted or open, or a backup is under way.
    """
    if cleaning:
        _clean(name, as_json)
        return
    if name is None:
        raise click.UsageError("name what to detach; 'blockcow status' lists it")
    match = folders.match(name) if "/" in name else None
    folder = folders.live(name) if match is None else match.folder
    client = Client(folder)
    if force:
        _say_what_happens(client)
    answer = client.post("/detach", {"force": force})
    if not folder.wait_until_free(_PATIENCE):
        raise failure(BusyError, f"detach {folder.name}", _why_it_stays(folder, answer["hanging"]))
    for use in answer["cut_off"]:
        say(f"blockcow: cut off: {use}")
    if as_json:
        print_json("detached", {"name": folder.name, "cut_off": answer["cut_off"]})


def _why_it_stays(folder: folders.RunFolder, hanging: list[str]) -> str:
    gone = "programs' devices are gone and all is written, but the daemon cannot end and holds the device"
    if not hanging:
        return f"{gone}; see {folder.log}"
    places = " and ".join(hanging)
    return f"{gone}: I/O of a backup to {places} hangs. It ends when that does; what is left there is no backup"


def _say_what_happens(client: Client) -> None:
    backups = [backup["id"] for backup in client.get("/status")["backups"] if not backup["over"]]
    for backup in backups:
        say(f"blockcow: the backup {backup} is cancelled")
    say("blockcow: what was acknowledged is written; programs that still use a device get errors from now on")


def _clean(name: str | None, as_json: bool) -> None:
    chosen = [*folders.all_folders(), *folders.with_leftovers()] if name is None else [folders.folder(name)]
    left = [folder for folder in chosen if (folder.path.is_dir() or folder.leftovers()) and not folder.is_live()]
    if name is not None and not left and chosen[0].is_live():
        reason = f"it is alive; 'blockcow detach {name}' ends it"
        raise failure(BusyError, f"clean up after {name}", reason)
    found, failed = [], False
    for folder in left:
        try:
            with folders.held(folder):
                found += clean(folder)
        except (BlockcowError, OSError) as error:
            say(f"blockcow: {folder.name}: {error}")
            failed = True
    for line in found:
        say(f"blockcow: cleaned up: {line}")
    if as_json:
        print_json("cleaned", {"found": found})
    if failed:
        raise VerbFailedError(FAILURE)
