"""The data path of a worker: its devices and the front-ends before them; begun anew, or taken over from a dead worker.

Nothing here touches a file system on a device that is served; see `errand`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec

from blockcow._blockcow import BlockcowError, BusyError, FuseExport, NbdServer
from blockcow.daemon.errand import ask
from blockcow.daemon.folders import Config, Place, RunFolder, State
from blockcow.daemon.store import Store
from blockcow.device import Device
from blockcow.errors import failure
from blockcow.pressure import Footing

_UNMOUNT_SECONDS = 30.0


@dataclass
class Served:
    """Devices that programs use through blockcow."""

    folder: RunFolder
    config: Config
    store: Store
    state: State
    devices: list[Device] = field(default_factory=list)
    exports: list[FuseExport] = field(default_factory=list)
    server: NbdServer | None = None
    listeners: list[socket.socket] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    footing: Footing | None = None
    """How far this process is kept at work when memory is short."""

    def device(self, path: str) -> Device:
        """The device with this path, or its name. Raises NotFoundError through the store of names."""
        for place, device in zip(self.state.places, self.devices, strict=True):
            if path in (place.device, place.loop, place.file, place.link):
                return device
        raise ValueError(f"{path} is not attached here: attached are {', '.join(self.config.devices)}")

    def place(self, device: Device) -> Place:
        """Where programs find it."""
        return self.state.places[self.devices.index(device)]

    def loops(self) -> list[str]:
        """All loop devices."""
        return [place.loop for place in self.state.places if place.loop is not None]


def name_of(path: str, among: list[str]) -> str:
    """The name of a device in NBD and in the folder: its last part, with a number where that is not alone."""
    name = Path(path).name
    same = [other for other in among if Path(other).name == name]
    return name if len(same) == 1 else f"{name}-{same.index(path) + 1}"


def begin(folder: RunFolder, config: Config, store: Store) -> Served:
    """Opens the devices and makes the front-ends. Raises; then `end` with what was made is due."""
    served = Served(folder, config, store, State(name=config.name, places=[Place(device=d) for d in config.devices]))
    try:
        for number, path in enumerate(config.devices):
            device = Device(path)
            served.devices.append(device)
            store.store(f"device:{number}", path, device.descriptors())
        _choose_frontend(served)
        if served.state.frontend == "nbd" or config.listen is not None:
            _listen(served)
        keep_state(served)
    except BaseException:
        abandon(served)
        raise
    return served


def adopt(folder: RunFolder, config: Config, store: Store) -> Served:
    """Takes over from a worker that is gone. The front-ends are due after the backups: see `adopt_frontends`."""
    served = Served(folder, config, store, msgspec.json.decode(store.items["state"].note, type=State))
    for number, path in enumerate(config.devices):
        served.devices.append(Device.adopt(path, store.items[f"device:{number}"].descriptors))
    return served


def adopt_frontends(served: Served) -> None:
    """Programs go on from here."""
    items = served.store.items
    for number, device in enumerate(served.devices):
        if (item := items.get(f"fuse:{number}")) is not None:
            served.exports.append(FuseExport.adopt(device, item.descriptors, item.note))
    if (item := items.get("listener")) is not None:
        served.listeners = [socket.socket(fileno=os.dup(item.descriptors[0]))]
        _serve(served)


def keep_state(served: Served) -> None:
    """What must be cleaned up is known to the keeper and on record before it is made."""
    if served.store.has_keeper:
        served.store.store("state", msgspec.json.encode(served.state).decode())
    served.folder.write(served.state)


def _choose_frontend(served: Served) -> None:
    wanted = served.config.frontend
    if wanted == "nbd":
        served.state.frontend = "nbd"
        return
    try:
        _require_fuse()
        _mount_all(served)
    except (BlockcowError, OSError) as error:
        if wanted == "fuse":
            raise
        abandon_files(served)
        reason = " ".join(str(error).split())
        served.warnings.append(f"FUSE cannot be used here ({reason}); programs find the device by NBD")
        served.state.frontend = "nbd"


def _require_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise OSError("there is no /dev/fuse that this user may open; is the module fuse there? (modprobe fuse)")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise OSError("the program fusermount3 (package fuse3) is missing")


def _mount_all(served: Served) -> None:
    """A file for each device, and as root a loop device on it."""
    served.state.frontend = "fuse"
    for number, (device, place) in enumerate(zip(served.devices, served.state.places, strict=True)):
        file = served.folder.path / f"file-{name_of(place.device, served.config.devices)}"
        file.touch(mode=0o600)
        place.file = str(file)
        keep_state(served)
        export = FuseExport.mount(device, place.file, allow_other=os.geteuid() == 0)
        served.exports.append(export)
        served.store.store(f"fuse:{number}", export.note(), export.descriptors())
        if os.geteuid() != 0:
            continue
        wanted = {"file": place.file, "sector": device.logical_block_size, "read_only": device.read_only}
        made, _ = ask("loop", wanted)
        place.loop = str(made["path"])
        single = len(served.devices) == 1
        place.link = str(served.folder.path / ("device" if single else f"device-{number + 1}"))
        Path(place.link).symlink_to(place.loop)
        keep_state(served)
        if made["writes_at_once"] is None:
            served.warnings.append("this kernel has no mq-deadline: suspended writes may hold up reads as well")
    if not all(export.can_resend for export in served.exports):
        reason = "this kernel cannot send requests again (FUSE_HAS_RESEND, Linux 6.9)"
        served.warnings.append(f"{reason}: if the worker dies, programs get errors, and 'restart' is refused")


def _listen(served: Served) -> None:
    config, state = served.config, served.state
    target = config.listen or f"unix:{served.folder.path / 'nbd.sock'}"
    scheme, _, place = target.partition(":")
    if scheme == "unix":
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(place)
        except OSError as error:
            raise failure(BusyError, f"listen on {place}", f"{error.strerror}; choose another place") from error
        finally:
            os.umask(before)
        state.sockets.append(place)
    else:
        host, _, port = place.removeprefix("//").rpartition(":")
        listener = socket.create_server((host.strip("[]"), int(port)), family=_family(host))
    served.listeners.append(listener)
    listener.listen(128)
    names = [name_of(path, config.devices) for path in config.devices]
    for place_of, name in zip(state.places, names, strict=True):
        export = "" if len(names) == 1 else quote(name, safe="")
        if scheme == "unix":
            place_of.nbd = f"nbd+unix:///{export}?socket={place}"
        else:
            shown, port = listener.getsockname()[:2]
            place_of.nbd = f"nbd://{f'[{shown}]' if ':' in shown else shown}:{port}/{export}"
    keep_state(served)
    served.store.store("listener", target, [listener.fileno()])
    _serve(served)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _serve(served: Served) -> None:
    names = [name_of(path, served.config.devices) for path in served.config.devices]
    served.server = NbdServer(list(zip(names, served.devices, strict=True)))
    for listener in served.listeners:
        served.server.serve(listener.fileno())


def end(served: Served) -> None:
    """Takes the front-ends away and lets the devices go, all written. Raises while somebody uses one."""
    for place in served.state.places:
        if place.loop is not None:
            ask("unloop", {"file": place.file, "timeout": _UNMOUNT_SECONDS})
            _remove_links(place)
            place.loop = None
            keep_state(served)
    if served.server is not None:
        served.server.close()
        served.server = None
    for number, export in enumerate(served.exports):
        export.close(_UNMOUNT_SECONDS)
        served.store.drop(f"fuse:{number}")
    for device in served.devices:
        device.flush()
        device.close()
    _remove_names(served)


def _remove_links(place: Place) -> None:
    if place.link is not None:
        Path(place.link).unlink(missing_ok=True)
    place.link = None


def cut_off(served: Served) -> None:
    """Ends everything at once: programs that use a device get errors. What was acknowledged is flushed."""
    if served.server is not None:
        served.server.close()
    for device in served.devices:
        with contextlib.suppress(BlockcowError):
            device.flush()
    for place in served.state.places:
        with contextlib.suppress(BlockcowError, OSError):  # in use: it ends with its last user
            ask("unloop", {"file": place.file, "timeout": 0.0})
    for export in served.exports:
        _unmount_lazily(export.mountpoint)
    _remove_names(served)


def _unmount_lazily(mountpoint: str) -> None:
    command = ["umount", "--force", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, mountpoint], check=False, timeout=_UNMOUNT_SECONDS, stdin=subprocess.DEVNULL)


def abandon_files(served: Served) -> None:
    """Undoes what was made of the FUSE front-end."""
    for place in served.state.places:
        if place.file is not None:
            with contextlib.suppress(BlockcowError, OSError):
                ask("unloop", {"file": place.file, "timeout": _UNMOUNT_SECONDS})
    for export in served.exports:
        with contextlib.suppress(BlockcowError):
            export.close(_UNMOUNT_SECONDS)
    served.exports = []
    for place in served.state.places:
        for path in (place.link, place.file):
            if path is not None:
                with contextlib.suppress(OSError):
                    Path(path).unlink(missing_ok=True)
        place.file = place.loop = place.link = None


def abandon(served: Served) -> None:
    """Undoes what was made before something failed."""
    abandon_files(served)
    if served.server is not None:
        served.server.close()
    for device in served.devices:
        device.close()
    _remove_names(served)


def _remove_names(served: Served) -> None:
    for path in [*served.state.sockets, *(place.link for place in served.state.places if place.link is not None)]:
        with contextlib.suppress(OSError):
            Path(path).unlink()
