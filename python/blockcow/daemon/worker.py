"""The worker: serves the devices, and answers on the control interface. Its keeper starts it, and starts it anew.

The data path comes first and everything slow to import afterwards: programs wait while a new worker takes over.
"""

import logging
import os
import queue
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from blockcow._blockcow import BlockcowError, BusyError, StateError
from blockcow.daemon import served as data_path
from blockcow.daemon.backups import Backups
from blockcow.daemon.folders import Config, RunFolder
from blockcow.daemon.served import Served
from blockcow.daemon.store import Store
from blockcow.daemon.uses import uses_of
from blockcow.errors import failure, fields_of
from blockcow.pressure import brace

log = logging.getLogger(__name__)

_FAILED = {"busy": 11, "invalid": 2}  # exit codes, by kind of error


class Worker:
    """One worker's life."""

    def __init__(self, served: Served, backups: Backups) -> None:
        self.served, self.backups = served, backups
        self.ends: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Why to end, when it is time."""
        self._ending = threading.Lock()

    def detach(self, force: bool) -> dict[str, Any]:
        """Takes everything away. Raises BusyError while something uses a device, unless forced."""
        with self._ending:
            uses = self._uses()
            under_way = self.backups.under_way()
            if not force:
                self._require_unused(uses, [entry.id for entry in under_way])
            for entry in under_way:
                self.backups.cancel(entry)
            for entry in under_way:
                while not entry.over:
                    entry.after(sys.maxsize, 1.0)
            if force and uses:
                data_path.cut_off(self.served)
            else:
                data_path.end(self.served)
        self.ends.put("bye")
        cut_off, hanging = uses if force else [], self.backups.hanging()
        return {"detached": self.served.config.name, "cut_off": cut_off, "hanging": hanging}

    def _uses(self) -> list[str]:
        own = (os.getpid(), self.served.store.keeper)
        found = [use for place in self.served.state.places for use in uses_of(place.loop, place.file, own)]
        if self.served.server is not None and (count := self.served.server.connections()):
            found.append(f"{count} NBD clients are connected")
        return found

    def _require_unused(self, uses: list[str], backups: list[str]) -> None:
        operation = f"detach {self.served.config.name}"
        if uses:
            more = f" (and {len(uses) - 1} more)" if len(uses) > 1 else ""
            advice = "unmount it or stop that program; --force cuts programs off, who then get errors"
            raise failure(BusyError, operation, f"{uses[0]}{more}; {advice}")
        if backups:
            advice = "wait for its end, or cancel it with --force"
            raise failure(BusyError, operation, f"a backup is under way; {advice}")

    def restart(self) -> None:
        """Gives way to a new worker."""
        if not self.served.store.has_keeper:
            reason = "its keeper was killed, so nobody would start another; detach and attach instead"
            raise failure(StateError, f"restart {self.served.config.name}", reason)
        if not all(export.can_resend for export in self.served.exports):
            reason = "this kernel cannot send requests again, so programs would get errors; detach and attach instead"
            raise failure(StateError, f"restart {self.served.config.name}", reason)
        self.ends.put("restart")

    def terminated(self) -> None:
        """SIGTERM: detaches if nobody uses a device."""
        try:
            self.detach(force=False)
        except BlockcowError as error:
            log.warning("%s", error)


def main() -> None:
    """Serves until it is told to end."""
    folder, config, link = RunFolder(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=Config), int(sys.argv[3])
    logging.basicConfig(format="%(asctime)s worker: %(message)s", level=logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    footing = brace()  # before there are other threads
    store = Store(link)
    try:
        worker = _begin(folder, config, store) if store.first else _take_over(folder, config, store)
        worker.served.footing = footing
        _run(worker, folder)
    except Exception as error:
        if not store.first:
            raise
        fields = fields_of(error)
        store.tell("failed", error=fields, exit_code=_FAILED.get(fields["kind"], 1))
        if config.foreground:
            sys.stderr.write(f"blockcow: {fields['message']}\n")


def _begin(folder: RunFolder, config: Config, store: Store) -> Worker:
    served = data_path.begin(folder, config, store)
    return Worker(served, Backups(served))


def _take_over(folder: RunFolder, config: Config, store: Store) -> Worker:
    served = data_path.adopt(folder, config, store)
    backups = Backups(served)
    backups.resume()
    data_path.adopt_frontends(served)
    log.info("worker %d has taken over", os.getpid())
    return Worker(served, backups)


def _run(worker: Worker, folder: RunFolder) -> None:
    served, store = worker.served, worker.served.store
    if not store.first:
        store.tell("ready", report=None)
    from blockcow.daemon import control, leftovers, report  # noqa: PLC0415 - programs do not wait for these imports

    if (item := store.items.get("control")) is not None:
        listener = socket.socket(fileno=os.dup(item.descriptors[0]))
    else:
        listener = control.listen(str(folder.control))
        store.store("control", str(folder.control), [listener.fileno()])
    store.close_items()
    pids = {"keeper_pid": store.keeper, "worker_pid": os.getpid()}
    interface = control.Control(listener, served, worker.backups, pids, worker.detach, worker.restart)
    interface.start()
    threading.Thread(target=worker.backups.watch_resumed, daemon=True).start()
    leftovers.remove_when_mounted(served, worker.backups.lock)
    if store.first:
        made = report.of(served)
        if served.config.foreground:
            report.say(made, served.config.as_json)
        store.tell("ready", report=made)
    threading.Thread(target=_wait_for_sigterm, args=(worker,), daemon=True).start()
    how = worker.ends.get()
    interface.close()
    store.tell(how)
    if not store.has_keeper:
        shutil.rmtree(folder.path, ignore_errors=True)
    if how == "restart":
        os.kill(os.getpid(), signal.SIGKILL)  # as the death that the next worker is made for
    os._exit(0)


def _wait_for_sigterm(worker: Worker) -> None:
    while True:
        signal.sigwait({signal.SIGTERM})
        worker.terminated()


if __name__ == "__main__":
    main()
