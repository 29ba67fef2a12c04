"""The worker's end of the link to its keeper: what must outlive the worker is stored there. Decides nothing."""

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from blockcow.daemon import keeper


@dataclass(frozen=True)
class Item:
    """What an earlier worker stored under a name."""

    note: str
    descriptors: list[int]


class Store:
    """Takes over what is there at the start; afterwards stores and drops. Safe from many threads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._link = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()
        self.items: dict[str, Item] = {}
        self.restarts, self.keeper, self.first = 0, 0, True
        while True:
            received = keeper.receive(self._link)
            if received is None:
                raise ConnectionError("the keeper has gone")
            message, descriptors = received
            if message["do"] == "begin":
                break
            self.items[message["name"]] = Item(message["note"], descriptors)
        self.restarts, self.keeper, self.first = message["restarts"], message["keeper"], message["first"]

    def store(self, name: str, note: str, descriptors: Sequence[int] = ()) -> None:
        """Keeps duplicates of the descriptors, and the note, until `drop`.

        Raises OSError if the keeper cannot, or has gone.
        """
        self._ask({"do": "store", "name": name, "note": note}, tuple(descriptors))

    def drop(self, name: str) -> None:
        """Forgets what has the name. A keeper that has gone has forgotten everything."""
        with suppress(ConnectionError):
            self._ask({"do": "drop", "name": name})

    @property
    def has_keeper(self) -> bool:
        """Whether there is still somebody to keep anything, and to start another worker."""
        return os.getppid() == self.keeper

    def tell(self, what: str, **fields: Any) -> None:
        """``ready``, ``failed``, ``restart`` or ``bye``. A keeper that has gone is no matter then."""
        with suppress(OSError), self._lock:
            keeper.send(self._link, {"do": what, **fields})

    def close_items(self) -> None:
        """Closes the descriptors that were taken over: whoever needs them has duplicates."""
        for name, item in self.items.items():
            if name != "lock":
                for descriptor in item.descriptors:
                    os.close(descriptor)

    def _ask(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        with self._lock:
            keeper.send(self._link, message, descriptors)
            received = keeper.receive(self._link)
        if received is None:
            raise ConnectionError("the keeper has gone: nothing can be kept for another worker")
        if "error" in received[0]:
            raise OSError(f"the keeper could not keep {message['name']}: {received[0]['error']}")
