"""The keep-alive connections to one engine: take an idle one or open one; none is used that the engine may close."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from time import monotonic
from typing import Protocol
from urllib.parse import urlsplit

from backends.vllm.connection import EngineConnection
from backends.vllm.outbox import Outbox

NO_DESCRIPTORS = "no_file_descriptors"
GATEWAY_FAULT = "gateway_fault"
NOT_THE_ENGINES = frozenset((NO_DESCRIPTORS, GATEWAY_FAULT))
"""Reasons for which no connection could be opened that say nothing about the engine."""


class Opening(Protocol):
    """Who waits for a new connection."""

    def opened(self, connection: EngineConnection) -> None:
        """It is there, and this one's."""

    def open_failed(self, reason: str, detail: str) -> None:
        """It could not be opened: connect_refused, connect_timeout, connect_failed, bad_host_name, no_file_descriptors,
        or gateway_fault, which is a fault of ours."""


class EnginePool:
    """Connections of one engine. Idle ones are used last in, first out, so that spare ones age and are closed.

    `idle_seconds` must stay below the engine's own keep-alive time (uvicorn's, vLLM's server: 5 s): an idle connection
    that the engine closes just as it is reused costs that call its one retry.
    """

    def __init__(
        self, url: str, *, connect_seconds: float, idle_seconds: float, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.authority = parts.netloc.rpartition("@")[2].encode("ascii")
        self.connect_seconds = connect_seconds
        self.idle_seconds = idle_seconds
        self.open_connections: set[EngineConnection] = set()
        self._idle: list[EngineConnection] = []
        self._openings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.outbox = Outbox(self._loop)

    def take(self) -> EngineConnection | None:
        """An idle connection that is surely still open, or None."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if (
                not connection.closed
                and not connection.paused  # its answer would never be read
                and monotonic() - connection.idle_since < self.idle_seconds
            ):
                return connection
            connection.abort()
        return None

    def open(self, opening: Opening) -> asyncio.Task[None]:
        """Open a new connection for `opening`; cancel the task to give up."""
        task = self._loop.create_task(self._open(opening))
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)
        return task

    async def _open(self, opening: Opening) -> None:
        try:
            async with asyncio.timeout(self.connect_seconds):
                _, connection = await self._loop.create_connection(
                    lambda: EngineConnection(self), self.host, self.port, ssl=self.tls
                )
        except Exception as error:  # noqa: BLE001  # whatever it is: who waits must hear of it
            opening.open_failed(*self._why_not(error))
            return
        self.open_connections.add(connection)
        try:
            opening.opened(connection)
        except Exception as error:
            connection.abort()
            opening.open_failed(GATEWAY_FAULT, f"a fault of the gateway's: {error!r}")
            raise

    def _why_not(self, error: Exception) -> tuple[str, str]:
        """Why there is no connection: the reason, a word, and more words."""
        where = f"{self.host}:{self.port}"
        if isinstance(error, TimeoutError):
            return "connect_timeout", f"no connection to {where} within {self.connect_seconds:g} s"
        if isinstance(error, ConnectionRefusedError):
            return "connect_refused", f"{where} refused the connection"
        if isinstance(error, UnicodeError):
            return "bad_host_name", f"{self.host} is no name of a host: {error}"
        if isinstance(error, OSError):  # no route, no such host, TLS failures
            if _out_of_descriptors(error):
                return NO_DESCRIPTORS, "this process may open no more files and sockets (ulimit -n)"
            return "connect_failed", f"no connection to {where}: {error}"
        return GATEWAY_FAULT, f"no connection to {where}: {error!r}"

    def give_back(self, connection: EngineConnection) -> None:
        """An answer ended and the engine keeps the connection open."""
        if self._closed:
            connection.abort()
            return
        if connection.paused:  # its last bytes were more than the client took at once; the next client is another
            connection.resume()
        connection.idle_since = monotonic()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """The connection is closed."""
        self.open_connections.discard(connection)
        if connection.answer is None and connection in self._idle:
            self._idle.remove(connection)

    def close_aged(self) -> None:
        """Close what has been idle for too long. The oldest are at the front."""
        limit = monotonic() - self.idle_seconds
        aged = 0
        for connection in self._idle:
            if connection.idle_since > limit:
                break
            aged += 1
        for connection in self._idle[:aged]:
            connection.abort()
        del self._idle[:aged]

    def close(self) -> None:
        """Close every connection and give every opening up."""
        self._closed = True
        for task in list(self._openings):
            task.cancel()
        for connection in list(self.open_connections):
            connection.abort()
        self._idle.clear()

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def busy_count(self) -> int:
        """Connections with a request under way, and those being opened."""
        return len(self.open_connections) - len(self._idle) + len(self._openings)


def _out_of_descriptors(error: OSError) -> bool:
    if isinstance(error, socket.gaierror):  # a look-up needs files too, and does not say that it lacked them
        try:
            socket.socket().close()
        except OSError as second:
            error = second
        else:
            return False
    return error.errno in (errno.EMFILE, errno.ENFILE)
