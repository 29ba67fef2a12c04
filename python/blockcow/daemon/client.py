"""The command line's way to a daemon: HTTP over its unix socket, patient while one worker follows another."""

import errno
import time
from collections.abc import Callable
from typing import Any

import httpx

from blockcow.daemon.folders import RunFolder
from blockcow.errors import rebuilt

_PATIENCE = 60.0  # seconds, for a new worker
_PAUSE = 0.1
_ANSWER_SECONDS = 600.0  # for a cut, a freeze, a detach


class DaemonGoneError(OSError):
    """Keeper and worker are gone, or do not answer."""


class Client:
    """Asks one daemon. Every question may be asked again after a worker's death, or says that it must not."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(folder.control)),
            base_url="http://blockcow",
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=10.0),
        )

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Asks for something. Raises what the daemon says went wrong."""
        return self._patiently(lambda: self._http.get(path, params=query))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Asks it to do something, once more if a worker died before it answered."""
        return self._patiently(lambda: self._http.post(path, json=body or {}))

    def delete(self, path: str) -> dict[str, Any]:
        """Ends something."""
        return self._patiently(lambda: self._http.delete(path))

    def text(self, path: str, **query: Any) -> str:
        """An answer that is not one JSON object."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._http.get(path, params=query).text
            except httpx.TransportError as error:
                self._pause(until, error)

    def _patiently(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                answer = ask()
            except httpx.TransportError as error:
                self._pause(until, error)
                continue
            fields: dict[str, Any] = answer.json()
            if "error" in fields and answer.status_code >= 400:
                raise rebuilt(fields["error"])
            return fields

    def _pause(self, until: float, error: Exception) -> None:
        if time.monotonic() > until or not self.folder.is_live():
            reason = f"it gives no answer ({error}); see {self.folder.log}, and 'blockcow detach --clean'"
            raise DaemonGoneError(errno.ECONNREFUSED, f"ask the daemon {self.folder.name}: {reason}") from error
        time.sleep(_PAUSE)

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()
