"""What a worker may not do itself: everything that can wait for the very device that it serves.

A thread that waits in the kernel for its own process cannot be killed, and its process with it; no other worker could
take over then. So file systems are looked at and brought to rest, and loop devices made and ended, by a process of its
own for each errand. It ends with the worker's end of their socket.

Run as ``python -P -m blockcow.daemon.errand WHAT FD``; messages are those of the keeper.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from blockcow import loop
from blockcow._blockcow import TimeoutExpired
from blockcow.consistency import quiesced
from blockcow.daemon import keeper
from blockcow.daemon.uses import mounts_on, require_outside_all
from blockcow.elsewhere import require_elsewhere
from blockcow.errors import failure, fields_of, rebuilt
from blockcow.export import is_uri
from blockcow.node import find
from blockcow.plan import Plan, make_plan

_PATIENCE = 120.0  # seconds

Answer = tuple[dict[str, Any], list[int]]


class Errand:
    """One errand under way, as the worker sees it."""

    def __init__(self, what: str, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        self._what = what
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "blockcow.daemon.errand", what, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        keeper.send(self._link, request, descriptors)

    def answer(self, timeout: float = _PATIENCE) -> Answer:
        """Its next answer. Raises what it says went wrong, or TimeoutExpired."""
        self._link.settimeout(timeout)
        try:
            received = keeper.receive(self._link)
        except TimeoutError as error:
            reason = f"it has not ended within {timeout:.0f} s; is a file system hanging?"
            raise failure(TimeoutExpired, self._what, reason) from error
        if received is None:
            raise OSError(f"the process for {self._what!r} ended without an answer")
        if "error" in received[0]:
            for descriptor in received[1]:
                os.close(descriptor)
            raise rebuilt(received[0]["error"])
        return received

    def tell(self, message: dict[str, Any]) -> None:
        """Lets it go on."""
        keeper.send(self._link, message)

    def end(self) -> None:
        """Ends it; one that hangs is left to itself, and goes when it can."""
        self._link.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()


def ask(what: str, request: dict[str, Any], timeout: float = _PATIENCE) -> Answer:
    """Does an errand of one question and one answer."""
    errand = Errand(what, request)
    try:
        return errand.answer(timeout)
    finally:
        errand.end()


def plan(device: str, loop_path: str | None, other_loops: list[str], folder: Path, options: dict[str, Any]) -> Plan:
    """The plan of a backup, as `make_plan` makes it; the mounts are those of the loop device and what lies on it.

    Refuses what the daemon itself would need to read or write through a device that it serves, its ``folder`` too.
    """
    request = {"device": device, "loop": loop_path, "others": other_loops, "folder": str(folder), "options": options}
    if is_uri(options["dest"]) or is_uri(options["container"]):
        return _make(request)  # its connections must be this process's own; a server may take only one
    return msgspec.convert(ask("plan", request)[0]["plan"], Plan)


@contextmanager
def at_rest(policy: str, mounts: list[str], timeout: float, outside: list[str]) -> Iterator[None]:
    """As `quiesced`, in a process of its own."""
    if policy == "none" or not mounts:
        yield
        return
    errand = Errand("rest", {"policy": policy, "mounts": mounts, "timeout": timeout, "outside": outside})
    try:
        errand.answer(timeout + _PATIENCE)
        yield
        errand.tell({})
        errand.answer(timeout + _PATIENCE)
    finally:
        errand.end()


def _plan(link: socket.socket, request: dict[str, Any]) -> None:
    keeper.send(link, {"plan": msgspec.to_builtins(_make(request))})


def _make(request: dict[str, Any]) -> Plan:
    options = dict(request["options"])
    mounts = mounts_on(request["loop"])
    node = find(request["device"])
    if not is_uri(options["dest"]):
        require_outside_all(options["dest"], "destination", node.path, request["loop"], request["others"])
    if ":" not in options["container"]:
        require_outside_all(options["container"], "container", node.path, request["loop"], request["others"])
    loops = [one for one in (request["loop"], *request["others"]) if one is not None]
    places = {"run folder": request["folder"], "place of the programs": sys.prefix}
    if (manifest := options.get("manifest")) is not None:
        places["manifest"] = manifest
    require_elsewhere(places, loops)
    return make_plan(node, options.pop("container"), options.pop("dest"), mounts=mounts, **options)


def _rest(link: socket.socket, request: dict[str, Any]) -> None:
    with quiesced(request["policy"], request["mounts"], request["timeout"], request["outside"]):
        keeper.send(link, {})
        keeper.receive(link)
    keeper.send(link, {})


def _loop(link: socket.socket, request: dict[str, Any]) -> None:
    wanted = {"sector": request["sector"], "read_only": request["read_only"]}
    made = loop.attach(request["file"], **wanted, autoclear=False)
    try:
        keeper.send(link, {"path": made.path, "writes_at_once": made.writes_at_once})
    except OSError:
        # The worker is dead, and whoever cleaned up after it may have looked for the device before it was there.
        made.detach()
        raise
    os.close(made.fd)


def _unloop(link: socket.socket, request: dict[str, Any]) -> None:
    for path in loop.on_file(request["file"]):
        loop.adopt(path, os.open(path, os.O_RDWR | os.O_CLOEXEC)).detach(request["timeout"])
    keeper.send(link, {})


_ERRANDS = {"plan": _plan, "rest": _rest, "loop": _loop, "unloop": _unloop}


def main() -> int:
    """Does one errand."""
    link = socket.socket(fileno=int(sys.argv[2]))
    os.set_inheritable(link.fileno(), False)
    received = keeper.receive(link)
    if received is None:
        return 1
    try:
        _ERRANDS[sys.argv[1]](link, received[0])
    except Exception as error:  # whatever it is, the worker tells it to whoever asked
        with suppress(BrokenPipeError):  # nobody asks any more
            keeper.send(link, {"error": fields_of(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
