"""The control interface: HTTP and JSON on a unix socket, for the command line, curl, Prometheus; see docs/formats.md.

Decides nothing but who may ask: the user who attached, and root.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from blockcow._blockcow import BusyError, ExistsError, NotFoundError, StateError
from blockcow.daemon import metrics
from blockcow.daemon.backups import Backups, Request
from blockcow.daemon.entry import Entry
from blockcow.daemon.served import Served
from blockcow.errors import fields_of
from blockcow.status import SCHEMA

_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid
_LONGEST_WAIT = 30.0  # seconds
_GOODBYE = 2  # seconds for answers under way, at the end

Ending = Callable[[bool], dict[str, Any]]


class _Farewell(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /detach``."""

    force: bool = False


class _SameUserOnly(H11Protocol):
    """Closes connections of other users before a byte of them is read; the socket's mode keeps out all but root."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("socket")
        _pid, uid, _gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            transport.close()
            return
        super().connection_made(transport)  # type: ignore[arg-type]


class Control:
    """Answers until it is closed."""

    def __init__(
        self,
        listener: socket.socket,
        served: Served,
        backups: Backups,
        pids: dict[str, int],
        detach: Ending,
        restart: Callable[[], None],
    ) -> None:
        self._served, self._backups, self._pids, self._detach, self._restart = served, backups, pids, detach, restart
        self._listener = listener
        config = uvicorn.Config(
            self._application(),
            http=_SameUserOnly,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GOODBYE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="control", daemon=True
        )

    def start(self) -> None:
        """Answers on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Sends the answers under way and stops."""
        self._server.should_exit = True
        self._thread.join(2 * _GOODBYE)

    def _application(self) -> Starlette:
        routes = [
            Route("/status", self._status),
            Route("/metrics", self._metrics),
            Route("/plan", self._plan, methods=["POST"]),
            Route("/backups", self._start, methods=["POST"]),
            Route("/backups/{id}", self._backup),
            Route("/backups/{id}", self._cancel, methods=["DELETE"]),
            Route("/backups/{id}/cut", self._cut, methods=["POST"]),
            Route("/backups/{id}/events", self._events),
            Route("/detach", self._end, methods=["POST"]),
            Route("/restart", self._renew, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={Exception: _failed})

    async def _status(self, _request: HttpRequest) -> Response:
        return _answer(await run_in_threadpool(metrics.status, self._served, self._backups, self._pids))

    async def _metrics(self, _request: HttpRequest) -> Response:
        text = await run_in_threadpool(metrics.render, self._served, self._backups)
        return PlainTextResponse(text, headers={"content-type": metrics.CONTENT_TYPE})

    async def _plan(self, request: HttpRequest) -> Response:
        body = await request.body()
        return await _attempt(lambda: self._describe(msgspec.json.decode(body, type=Request)))

    def _describe(self, wanted: Request) -> dict[str, Any]:
        return {"plans": [self._backups.plan(one).describe() for one in wanted.backups]}

    async def _start(self, request: HttpRequest) -> Response:
        body = await request.body()
        return await _attempt(lambda: self._begin(msgspec.json.decode(body, type=Request)), 201)

    def _begin(self, wanted: Request) -> dict[str, Any]:
        entry = self._backups.prepare(wanted)
        if wanted.cut:
            self._backups.cut(entry)
        return entry.status()

    async def _cut(self, request: HttpRequest) -> Response:
        return await _attempt(lambda: self._make_cut(self._named(request)))

    def _make_cut(self, entry: Entry) -> dict[str, Any]:
        self._backups.cut(entry)
        return entry.status()

    async def _backup(self, request: HttpRequest) -> Response:
        return await _attempt(lambda: self._named(request).status())

    async def _cancel(self, request: HttpRequest) -> Response:
        return await _attempt(lambda: self._give_up(self._named(request)))

    def _give_up(self, entry: Entry) -> dict[str, Any]:
        self._backups.cancel(entry)
        return entry.status()

    def _named(self, request: HttpRequest) -> Entry:
        return self._backups.find(request.path_params["id"])

    async def _events(self, request: HttpRequest) -> Response:
        """Lines of JSON, as they come; with ``follow=0`` those that are there."""
        try:
            entry = self._named(request)
            since, follow = int(request.query_params.get("since", 0)), request.query_params.get("follow", "1") != "0"
        except Exception as error:
            return _error(error)
        return StreamingResponse(self._lines(entry, since, follow), media_type="application/x-ndjson")

    async def _lines(self, entry: Entry, since: int, follow: bool) -> AsyncIterator[bytes]:
        while True:
            over = entry.over
            events = await run_in_threadpool(entry.after, since, 1.0 if follow else 0.0)
            for event in events:
                since = event["seq"]
                yield json.dumps({"message_type": "event", "schema": SCHEMA, **event}).encode() + b"\n"
            if over or not follow or self._server.should_exit:
                return

    async def _end(self, request: HttpRequest) -> Response:
        body = await request.body()
        return await _attempt(lambda: self._detach(msgspec.json.decode(body or b"{}", type=_Farewell).force))

    async def _renew(self, _request: HttpRequest) -> Response:
        def renew() -> dict[str, Any]:
            self._restart()
            return {"restarts": self._backups.restarts}

        return await _attempt(renew, 202)


async def _attempt(work: Callable[[], dict[str, Any]], code: int = 200) -> Response:
    try:
        return _answer(await run_in_threadpool(work), code)
    except Exception as error:  # every failure has its answer
        return _error(error)


def _answer(fields: dict[str, Any], code: int = 200) -> Response:
    return Response(json.dumps({"schema": SCHEMA, **fields}) + "\n", code, media_type="application/json")


def _error(error: Exception) -> Response:
    codes: list[tuple[type[Exception], int]] = [
        (NotFoundError, 404),
        (BusyError, 409),
        (ExistsError, 409),
        (StateError, 409),
        (ValueError, 400),
    ]
    code = next((code for kind, code in codes if isinstance(error, kind)), 500)
    return _answer({"error": fields_of(error)}, code)


async def _failed(_request: HttpRequest, error: Exception) -> Response:
    return _error(error)


def listen(path: str) -> socket.socket:
    """The control socket, for its owner only from the first moment."""
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - the folder is held, so this is a dead daemon's
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(64)
    return listener
