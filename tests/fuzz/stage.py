"""A real gateway between a raw client and a scripted engine, kept over all the examples of a test."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from tests.e2e.harness import EngineRequest, RunningGateway, ScriptedEngine, gateway
from tests.fuzz.wire import Message, Short, read_answer, read_requests

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

T = TypeVar("T")
BODY_MAX = 4096
"""Bytes of a request's body in these tests: small, so that going over it is cheap."""
PATIENCE_SECONDS = 15.0
"""Nothing here takes so long, unless it never happens."""
SHRINKING_SECONDS = 1.0
"""The same, once an example has failed: hypothesis then tries hundreds that are like it."""
FEW = {"body_bytes": BODY_MAX, "header_bytes": 2048, "url_bytes": 512, "header_count": 64}


INNOCENT = b"/innocent"
"""What somebody else asks for, beside every example."""


class RawClient(asyncio.Protocol):
    """Keeps what it is sent, up to the last byte before a reset."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = asyncio.Event()
        self.transport: Any = None
        self.reset = False
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.reset = error is not None
        self._news.set()
        self.closed.set()

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Write them one after the other, so that they are read one by one or together as it happens."""
        for piece in pieces:
            if self.transport.is_closing():
                return
            self.transport.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def answer(self, at: int = 0, *, head_only: bool = False) -> Message | None:
        """The answer that begins here; None if the connection ends before it does. Raises Bad."""
        while True:
            self._news.clear()
            over = self.closed.is_set()
            message = complete_answer(bytes(self.received), at, head_only=head_only, closed=over and not self.reset)
            if message is not None or over:
                return message
            await self._news.wait()


def complete_answer(data: bytes, at: int, *, head_only: bool, closed: bool) -> Message | None:
    """The first answer here that is no interim one; None if it is not whole. Raises Bad."""
    try:
        while (message := read_answer(data, at, head_only=head_only, closed=closed)).status < 200:
            at = message.end
    except Short:
        return None
    return message


class StrictEngine(ScriptedEngine):
    """An engine that looks at every byte it is sent. `got` has the requests, `faults` what no engine should see."""

    def __init__(self, answer: Callable[[EngineRequest], Awaitable[None]]) -> None:
        super().__init__(answer)
        self.got: list[Message] = []
        self.faults: list[str] = []

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> EngineRequest:
        data = await reader.readuntil(b"\r\n\r\n")
        while (reading := read_requests(data, 1 << 30)).end == "short":
            data += await reader.readexactly(len(reading.completion))
        if reading.end != "clean" or len(reading.requests) != 1:
            self.faults.append(f"{reading.end}: {data!r}")
            raise ConnectionResetError
        (message,) = reading.requests
        if message.values(b"user-agent") != [b"joulegate"] and message.start[1] != INNOCENT:  # no probe, nobody else
            self.got.append(message)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in message.headers]
        method, target = message.start[0].decode(), message.start[1].decode()
        return EngineRequest(method, target, headers, message.body, reader, writer)


class Stage:
    """Where a fuzz test plays: enter it once, then `run` a coroutine for each example and `check` after it."""

    def __init__(self, answer: Callable[[EngineRequest], Awaitable[None]], **tables: Any) -> None:
        self._answer = answer
        self._tables = tables
        self._patience_seconds = PATIENCE_SECONDS
        self.complaints: list[str] = []
        """What reached the loop's exception handler: an exception that nobody expected."""

    def __enter__(self) -> Stage:
        self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))
        self._bounded(self._open())
        return self

    async def _open(self) -> None:
        self.complaints.clear()
        self.engine = StrictEngine(self._answer)
        await self.engine.start()
        self._gateway = gateway(self.engine, **self._tables)
        self.gateway: RunningGateway = await self._gateway.__aenter__()
        self._innocent = await self.connect()

    async def _close(self, error: Exception | None = None) -> None:
        self._innocent.transport.abort()
        try:
            await self._gateway.__aexit__(type(error) if error else None, error, None)
        finally:
            await self.engine.kill()

    def __exit__(self, *_: object) -> None:
        try:
            self._bounded(self._close())
            assert not self.complaints, str(self.complaints)
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run one example's coroutine, bounded. After a failure the next one finds everything new."""
        try:
            return self._bounded(main)
        except BaseException:
            self._patience_seconds = SHRINKING_SECONDS
            with contextlib.suppress(Exception):  # what is left of the failure
                self._bounded(self._close(RuntimeError("an example failed")))
            self._bounded(self._open())
            raise

    def _bounded(self, main: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(self._patience_seconds):
                return await main

        return self._loop.run_until_complete(bounded())

    async def connect(self) -> RawClient:
        """A new client's connection."""
        _, client = await asyncio.get_running_loop().create_connection(RawClient, "127.0.0.1", self.gateway.port)
        return client

    async def check(self) -> None:
        """Somebody else's connection still works, nothing is left of the example, and nobody has complained."""
        innocent = self._innocent
        assert not innocent.closed.is_set(), "somebody else's connection was closed"
        innocent.received.clear()
        innocent.transport.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % INNOCENT)
        answer = await innocent.answer()
        assert answer is not None and answer.status == 200, answer
        inner = self.gateway.app.gateway
        server = inner.server
        while len(server.connections) > 1 or inner.exchanges or not self.gateway.idle():  # noqa: ASYNC110
            await asyncio.sleep(0)  # Stage.run bounds it
        assert server.buffered_bytes == 0, server.buffered_bytes
        inner.scheduler.validate()
        assert not self.complaints, str(self.complaints)
        assert not self.engine.faults, str(self.engine.faults)


def cut(data: bytes, at: Sequence[int] | None) -> list[bytes]:
    """The pieces of this stream, up to 400 bytes of it one by one for None; places beyond its end count from its
    beginning again."""
    if at is None:
        return [
            *[data[place : place + 1] for place in range(min(400, len(data)))],
            *([data[400:]] if data[400:] else []),
        ]
    places = sorted({place % (len(data) + 1) for place in at} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]
