"""The run folders of attached devices: where they are, what is in them, who holds them. Starts and ends nothing.

``state.json`` in a run folder names everything outside it that must be cleaned up when keeper and worker are killed.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from blockcow import sysfs
from blockcow._blockcow import BusyError, NotFoundError
from blockcow.errors import failure
from blockcow.node import Node, find

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}")
_LONGEST_SOCKET = 100  # a unix socket's path has at most 107 bytes


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon is started with."""

    name: str
    devices: list[str]
    """Absolute paths."""
    frontend: str
    """``auto``, ``fuse`` or ``nbd``."""
    listen: str | None
    foreground: bool
    as_json: bool


class Place(msgspec.Struct, kw_only=True):
    """Where programs find one device."""

    device: str
    file: str | None = None
    """The file that FUSE serves."""
    loop: str | None = None
    link: str | None = None
    """A symlink that always leads to the loop device."""
    nbd: str | None = None
    """An NBD URI."""

    @property
    def path(self) -> str:
        """What programs open."""
        return self.loop or self.file or self.nbd or self.device


class State(msgspec.Struct, kw_only=True):
    """What a daemon has made outside its folder."""

    name: str
    frontend: str = "fuse"
    places: list[Place] = []
    sockets: list[str] = []
    """Unix sockets to remove."""
    partials: list[str] = []
    """Files of backups under way, which are broken if nobody goes on with them."""
    containers: list[str] = []
    """Container files inside a file system on an attached device, of backups under way."""


class RunFolder:
    """The folder of one attach."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def control(self) -> Path:
        """The socket of the control interface."""
        return self.path / "control.sock"

    @property
    def log(self) -> Path:
        """What worker and keeper said."""
        return self.path / "log"

    def read(self) -> State:
        """The state last written. Raises OSError, or ValueError if it is damaged."""
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=State)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

    @property
    def _leftovers(self) -> Path:
        return self.path.with_name(f"{self.name}.leftovers")  # beside the folder, which comes and goes

    def leftovers(self) -> list[str]:
        """Container files that a killed daemon left inside a file system, to be removed once it is mounted again."""
        try:
            return msgspec.json.decode(self._leftovers.read_bytes(), type=list[str])
        except (OSError, ValueError):
            return []

    def remember(self, leftovers: list[str]) -> None:
        """What is still left."""
        if leftovers:
            self._leftovers.write_bytes(msgspec.json.encode(leftovers))
        else:
            self._leftovers.unlink(missing_ok=True)

    def remember_also(self, *leftovers: str) -> None:
        """More that is left."""
        self.remember([*self.leftovers(), *leftovers])

    def write(self, state: State) -> None:
        """Writes the state, whole or not at all."""
        new = self.path / "state.json.new"
        new.write_bytes(msgspec.json.encode(state))
        new.replace(self.path / "state.json")

    def pid(self, who: str) -> int | None:
        """The process that is the ``keeper`` or ``worker``, as far as it is known."""
        with suppress(OSError, ValueError):
            return int((self.path / f"{who}.pid").read_text())
        return None

    def is_live(self) -> bool:
        """Whether a keeper or worker holds it."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def hold(self) -> int:
        """Makes the folder if need be and takes its lock, which is the descriptor's. Raises BusyError."""
        while True:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                advice = f"choose another --name, or detach it first with 'blockcow detach {self.name}'"
                raise failure(BusyError, f"attach as {self.name}", f"that name is in use; {advice}") from error
            with suppress(OSError):
                if os.path.samestat(os.fstat(lock), (self.path / "lock").stat()):
                    return lock
            os.close(lock)  # whoever held it has removed the folder meanwhile

    def wait_until_free(self, timeout: float) -> bool:
        """Waits until keeper and worker have gone."""
        until = time.monotonic() + timeout
        while self.is_live():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


def base() -> Path:
    """The folder of all run folders of this user."""
    if chosen := os.environ.get("BLOCKCOW_RUN_DIR"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/run/blockcow")
    if own := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(own) / "blockcow"
    raise ValueError("there is no place for sockets: set XDG_RUNTIME_DIR, or BLOCKCOW_RUN_DIR to a folder of your own")


def folder(name: str) -> RunFolder:
    """The run folder of a name, which may not be there. Raises ValueError for a name that cannot be."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: use up to 64 letters, digits and . _ @ : -, a letter or digit first")
    found = RunFolder(base() / name)
    if len(os.fsencode(found.control)) > _LONGEST_SOCKET:
        raise ValueError(
            f"the path {found.control} is too long for a socket: choose a shorter --name, or BLOCKCOW_RUN_DIR"
        )
    return found


def all_folders() -> list[RunFolder]:
    """Every run folder, live or left behind."""
    try:
        place = base()
    except ValueError:
        return []
    if not place.is_dir():
        return []
    return [RunFolder(entry) for entry in sorted(place.iterdir()) if entry.is_dir() and (entry / "lock").exists()]


def with_leftovers() -> list[RunFolder]:
    """The run folders, which may not be there, of names of which something was left."""
    return [RunFolder(entry.with_suffix("")) for entry in sorted(base().glob("*.leftovers"))]


def live(name: str) -> RunFolder:
    """The folder of an attach that is there. Raises NotFoundError."""
    found = folder(name)
    if found.is_live():
        return found
    names = [one.name for one in all_folders() if one.is_live()]
    known = f"attached are: {', '.join(names)}" if names else "nothing is attached"
    raise failure(NotFoundError, f"find the attached device {name}", f"there is none of that name; {known}")


@dataclass(frozen=True)
class Match:
    """An attached device that somebody named."""

    folder: RunFolder
    device: str
    """Its own path."""
    part: str | None
    """The partition that was named, where it was one."""

    def busy(self, operation: str) -> BusyError:
        """That it is attached already."""
        advice = f"it is attached as {self.folder.name} already; 'blockcow detach {self.folder.name}' ends that"
        return failure(BusyError, operation, advice)


def match(name: str) -> Match | None:
    """The attached device that ``name`` means: its path, its loop device or a partition of that, its file, or the name
    of an attach. None if nothing attached is meant. Raises ValueError for the name of a group."""
    folders = _live_states()
    for one, state in folders:
        if one.name == name:
            if len(state.places) == 1:
                return Match(one, state.places[0].device, None)
            devices = ", ".join(place.device for place in state.places)
            raise ValueError(f"{name} is a group of {len(state.places)} devices: name each with --device: {devices}")
    node = _node(name)
    if node is None:
        return None
    disk = sysfs.disk_of(node.sysfs) if node.is_block else None
    for one, state in folders:
        for place in state.places:
            if node.key in [found.key for found in map(_node, (place.device, place.loop, place.file)) if found]:
                return Match(one, place.device, None)
            if disk is not None and place.loop == f"/dev/{disk.name}":
                return Match(one, place.device, name)
    return None


def _live_states() -> list[tuple[RunFolder, State]]:
    found = []
    for one in all_folders():
        with suppress(OSError, ValueError):
            if one.is_live():
                found.append((one, one.read()))
    return found


def _node(path: str | None) -> Node | None:
    if path is None:
        return None
    with suppress(OSError, ValueError, NotFoundError):
        return find(path)
    return None


@contextmanager
def held(one: RunFolder) -> Iterator[int]:
    """Holds a folder for as long as the block runs."""
    lock = one.hold()
    try:
        yield lock
    finally:
        os.close(lock)
