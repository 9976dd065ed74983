"""The data plane's listening side: which clients are connected, how long they may take, how much they may send."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from backends.vllm.outbox import Outbox
from proxy.errors import RequestFault
from proxy.http.connection import ClientConnection

if TYPE_CHECKING:
    from proxy.config import LimitsConfig, TimeoutsConfig
    from proxy.http.request import Request

SWEEP_SECONDS = 0.25
"""How often deadlines are looked at: one pass over all connections costs less than a timer for each."""
STRANGERS_PART = 8
"""One of so many parts of `limits.buffered_bytes` is for bodies of requests that show no key in their head."""


class Handler(Protocol):
    """Who answers the requests."""

    def start(self, connection: ClientConnection, request: Request) -> object:
        """Answer this request; set `connection.exchange` if that takes longer than this call."""

    def check_before_body(self, connection: ClientConnection, request: Request) -> None:
        """Raise RequestFault to refuse a request before its body is read (its head is complete)."""


class Server:
    """Listens, keeps the connections, and closes those whose time is up."""

    def __init__(self, handler: Handler, limits: LimitsConfig, timeouts: TimeoutsConfig) -> None:
        self.limits = limits
        self.timeouts = timeouts
        self.connections: set[ClientConnection] = set()
        self.buffered_bytes = 0
        """Bytes of request bodies held now: `hold_bytes` adds what is read, `release_bytes` takes it off."""
        self._strangers_bytes = 0
        """Of those that are being read of requests whose key is not known yet."""
        self.refused_connections = 0
        self.draining = False
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox(self._loop)
        self.time = monotonic
        self.start = handler.start
        self.check_before_body = handler.check_before_body
        self._listening: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> int:
        """Listen on a TCP port (0 = any free one); returns it. OSError if it is taken."""
        server = await self._loop.create_server(lambda: ClientConnection(self), host, port, backlog=2048)
        self._listening.append(server)
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    def stop_listening(self) -> None:
        """No new connections; those that are idle are closed, the others after their present answer."""
        self.draining = True
        for server in self._listening:
            server.close()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()

    def close(self) -> None:
        """Close everything at once."""
        self.stop_listening()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self.connections):
            connection.abort()

    # --- for the connections ---

    def connected(self, connection: ClientConnection) -> None:
        """A client connected; over the limit it is closed without a word: an answer would cost what is short."""
        if len(self.connections) >= self.limits.client_connections:
            self.refused_connections += 1
            connection.abort()
        self.connections.add(connection)

    def disconnected(self, connection: ClientConnection) -> None:
        """A client is gone."""
        self.connections.discard(connection)

    def hold_bytes(self, request: Request, count: int) -> None:
        """A piece of a request's body has come. RequestFault 503 if there is no room for it.

        Who shows no key gets a part of the room, so that nobody without one can keep out those who have one.
        """
        room = self.limits.buffered_bytes - self.buffered_bytes
        if request.strangers:
            room = min(room, self.limits.buffered_bytes // STRANGERS_PART - self._strangers_bytes)
        if count > room:
            message = "the gateway holds as many request bytes as it may (limits.buffered_bytes); try again later"
            raise RequestFault(503, "buffers_full", message, close=True)
        self.buffered_bytes += count
        if request.strangers:
            self._strangers_bytes += count

    def body_read(self, request: Request, count: int) -> None:
        """So many bytes had been held of a body that is whole now, or will never be."""
        if request.strangers:
            self._strangers_bytes -= count
            assert self._strangers_bytes >= 0

    def release_bytes(self, count: int) -> None:
        """Bytes of a request are no longer held."""
        self.buffered_bytes -= count
        assert self.buffered_bytes >= 0

    def _sweep_now(self) -> None:
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)  # first: nothing may end the sweeping
        now = self.time()
        for connection in list(self.connections):
            connection.check_time(now, self.timeouts)
