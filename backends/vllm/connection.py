"""One keep-alive HTTP/1.1 connection to an engine: a request out, an answer's bytes in, one callback a read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.vllm.pool import EnginePool

HEAD_BYTES_MAX = 256 * 1024
"""An answer's head may have this many bytes; vLLM's have about 200."""


class Answer(Protocol):
    """Who asked. Every request sent ends in exactly one `ended=True` or one `lost`."""

    def received(self, connection: EngineConnection, body: bytes, ended: bool) -> None:
        """Some bytes of the answer's body, decoded from any chunked framing. The first call of an answer also means
        that `connection.status` and `connection.headers` are there. `ended`: the answer is complete; the connection
        is no longer this request's."""

    def lost(self, reason: str, detail: str) -> None:
        """The connection ended before the answer did. `reason` is a word: engine_reset, engine_protocol."""


class EngineConnection(asyncio.Protocol):
    """A connection carries one request at a time. When an answer has ended it goes back to its pool by itself."""

    __slots__ = (
        "_announced",
        "_head_bytes",
        "_head_done",
        "_message_done",
        "_parser",
        "_pieces",
        "_reusable",
        "answer",
        "headers",
        "idle_since",
        "no_body",
        "on_body",
        "paused",
        "pool",
        "status",
        "transport",
        "used",
        "writable",
    )

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.used = 0
        """Requests sent on this connection: a reset of one that was used before may be a keep-alive race."""
        self.idle_since = 0.0
        self.no_body = False
        """The request was HEAD: the answer's head announces a body that does not come."""
        self.writable = True
        self.paused = False
        """Nothing is read from it now."""
        self._head_bytes = 0
        self._head_done = False
        self._announced = False
        self._message_done = False
        self._reusable = False
        self._pieces: list[bytes] = []
        # The parser calls `list.append` itself: nothing of ours runs per chunk but `data_received`.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    # --- for the one who asks ---

    def send(self, answer: Answer, request: bytes, body: bytes, *, no_body: bool = False) -> None:
        """Send one request: its head and its body."""
        assert self.answer is None and self.transport is not None
        self.answer = answer
        self.no_body = no_body
        self.used += 1
        self._message_done = self._head_done = self._announced = False
        self._head_bytes = 0
        if len(body) < 65_536:  # one write, one system call
            self.pool.outbox.write(self.transport, request + body)
        else:
            self.transport.writelines((request, body))

    def abort(self) -> None:
        """Give the request up: the engine sees the connection close and frees the slot. No callback follows."""
        self.answer = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Stop reading the answer: its reader is slow."""
        if self.transport is not None and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def silent(self) -> bool:
        """Whether not even a part of the present answer's head has come."""
        return not self._head_done and self._head_bytes == 0

    @property
    def closed(self) -> bool:
        """Whether no request can be sent on it any more."""
        return self.transport is None or self.transport.is_closing()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:  # an idle connection that speaks unasked (or late bytes after an abort)
            self.abort()
            return
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("engine_protocol", "the engine switched protocols without being asked")
            return
        except (httptools.HttpParserError, ProtocolFault) as error:
            self._fail("engine_protocol", f"not an HTTP answer: {error.__context__ or error}")
            return
        if not self._head_done:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._fail("engine_protocol", f"the answer's head is over {HEAD_BYTES_MAX} bytes")
            return
        pieces = self._pieces
        if len(pieces) == 1:
            body = pieces[0]
            pieces.clear()
        elif pieces:
            body = b"".join(pieces)
            pieces.clear()
        else:
            body = b""
        if not (self._message_done or self.no_body):
            if body or not self._announced:  # the head is passed on even if no body has come yet
                self._announced = True
                answer.received(self, body, False)
            return
        self.answer = None
        answer.received(self, b"" if self.no_body else body, True)
        if self._reusable and not self.no_body:
            self.pool.give_back(self)
        elif self.transport is not None:
            self.transport.close()

    def eof_received(self) -> bool:
        """End of the stream: for an answer without a length this, and only this, is its regular end."""
        answer = self.answer
        if answer is not None and self._head_done and self._until_eof():
            self.answer = None
            answer.received(self, b"", True)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._parser = None  # parser and connection hold each other
        self.on_body = _nowhere
        self.pool.forget(self)
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.lost("engine_reset", str(error or "the engine closed the connection before its answer was complete"))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    # --- httptools ---

    def on_message_begin(self) -> None:
        if self._message_done:
            raise ProtocolFault("bytes after the end of the answer")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # trailers are not passed on
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._head_done = True

    def on_message_complete(self) -> None:
        if self._head_done:  # else it was an interim answer (100, 103)
            self._message_done = True
            assert self._parser is not None
            self._reusable = self._parser.should_keep_alive()  # the parser forgets it after this callback

    # --- inside ---

    def _until_eof(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _fail(self, reason: str, detail: str) -> None:
        answer, self.answer = self.answer, None
        if self.transport is not None:
            self.transport.abort()
        if answer is not None:
            answer.lost(reason, detail)


class ProtocolFault(Exception):
    """The engine sent what HTTP does not allow and the parser does not refuse."""


def _nowhere(data: bytes) -> None:
    """Where bytes go that come after the end."""
