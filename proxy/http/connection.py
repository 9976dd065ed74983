"""A client's connection: bytes in, whole requests out, one at a time; and its side of the back-pressure."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from proxy.errors import RequestFault
from proxy.http.request import Request, body_too_large, check_head

if TYPE_CHECKING:
    from proxy.config import TimeoutsConfig
    from proxy.http.peers import Answering
    from proxy.http.server import Server
    from proxy.keys import Authorized

BYTES_PER_SECOND_MIN = 65_536
"""A body may take `timeouts.request_seconds` and a second more for each so many bytes of it."""
LINGER_SECONDS = 2.0
"""A refused client's bytes are dropped for so long before its connection is closed."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST."""


class ClientConnection(asyncio.Protocol):
    """Requests that a client pipelines are read ahead up to a limit and answered in their order.

    Reading never stops while a call is under way, since that is how a client's leaving is seen at once: what is
    pipelined over the limit is refused.
    """

    __slots__ = (
        "_bare_bytes",
        "_behind_another",
        "_body",
        "_body_bytes",
        "_closing",
        "_ends_at",
        "_looping",
        "_parser",
        "_reading",
        "_request",
        "_started_at",
        "_trailer_bytes",
        "_unsent_bytes",
        "_waiting",
        "authorized",
        "exchange",
        "idle_since",
        "server",
        "transport",
        "write_paused",
    )

    on_sent: None = None
    """A client learns of what happens from its answer alone."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.exchange: Answering | None = None
        self.idle_since = 0.0
        self.authorized: Authorized | None = None
        """The valid key that this client sent last."""
        self.write_paused = False
        """The client reads slower than it is written to."""
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._request = Request()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._bare_bytes = 0
        """Of the head so far; once that is whole: of the reads since the last byte of the body."""
        self._trailer_bytes = 0
        self._behind_another = False
        """The request began in a read that it shares with the one before: `_bare_bytes` lacks its first part."""
        self._started_at = 0.0
        self._reading: bool = False
        """A request has begun and is not yet whole."""
        self._waiting: deque[Request] = deque()
        self._looping = False
        self._closing = False
        """Nothing more is read: the connection ends with the last answer that is due."""
        self._ends_at: float | None = None
        """It is being closed, and broken off at this time unless its client reads on meanwhile."""
        self._unsent_bytes = 0

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self.server.limits.response_buffer_bytes)
        self.idle_since = self._started_at = self.server.time()
        self.server.connected(self)

    def data_received(self, data: bytes) -> None:
        while data and not self._closing:  # (else: the rest of a refused request)
            if not self._reading:
                self._begin()
            request, body_bytes = self._request, self._body_bytes
            in_head = not request.method
            if in_head:
                self._bare_bytes += len(data)
            parser = self._parser
            assert parser is not None
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserCallbackError as error:
                if not isinstance(error.__context__, RequestFault):
                    raise
                self._refuse(error.__context__)
            except httptools.HttpParserInvalidMethodError:
                self._refuse(RequestFault(400, "malformed_http", "not an HTTP request: unknown method", close=True))
            except httptools.HttpParserError as error:
                self._refuse(RequestFault(400, "malformed_http", f"not a valid HTTP request: {error}", close=True))
            if self._reading:  # the read ended within a request
                if not in_head and self._request is request:
                    self._bare_bytes = self._bare_bytes + len(data) if self._body_bytes == body_bytes else 0
                # A head that goes on for ever, or trailers, or a chunk's size or extension: the parser has no limit.
                if self._bare_bytes > self.server.limits.header_bytes:
                    self._refuse(self._head_too_large())
            return

    def eof_received(self) -> bool:
        return False  # a client that will not read the answer's end: the transport closes, connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._parser = None  # parser and connection hold each other
        self.server.body_read(self._request, self._body_bytes)
        self.server.release_bytes(self._body_bytes)
        self._body.clear()
        for request in self._waiting:
            self.server.release_bytes(len(request.body))
        self._waiting.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        self.server.disconnected(self)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.resume()

    # --- httptools ---

    def on_url(self, url: bytes) -> None:
        if not self._reading:  # a pipelined request, whole or in part in the same read as the one before
            if self._closing:  # the answer to that one ends the connection
                raise RequestFault(400, "closed", "bytes behind the last request of a connection", close=True)
            self._begin()
            self._behind_another = True
        request = self._request
        request.target += url
        if len(request.target) > self.server.limits.url_bytes:
            limit = self.server.limits.url_bytes
            raise RequestFault(414, "url_too_long", f"the URL is over {limit} bytes (limits.url_bytes)", close=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request.method:  # trailers of a chunked body are not passed on
            self._trailer_bytes += len(name) + len(value) + 4
            if self._trailer_bytes > self.server.limits.header_bytes:
                raise self._head_too_large()
            return
        lower = name.lower()
        request.fields[lower] = value
        request.headers.append((lower, name, value))

    def on_headers_complete(self) -> None:
        request, parser, server = self._request, self._parser, self.server
        assert parser is not None
        limits = server.limits
        if len(request.headers) > limits.header_count:
            message = (
                f"{len(request.headers)} headers are over the limit of {limits.header_count} (limits.header_count)"
            )
            raise RequestFault(431, "too_many_headers", message, close=True)
        if (self._behind_another or self._bare_bytes > limits.header_bytes) and (
            request.head_bytes() > limits.header_bytes
        ):
            raise self._head_too_large()
        self._bare_bytes = 0
        version = parser.get_http_version()
        request.method = parser.get_method()
        request.keep_alive = parser.should_keep_alive()
        if self._waiting and len(self._waiting) >= limits.pipelined_requests:
            message = (
                f"{len(self._waiting)} requests of this connection wait for the answer before theirs"
                " (limits.pipelined_requests); send fewer at once, or over several connections"
            )
            raise RequestFault(429, "pipeline_full", message, close=True)
        check_head(request, version, limits.body_bytes)
        fields = request.fields
        if b"content-length" in fields or b"transfer-encoding" in fields:
            server.check_before_body(self, request)
            # Behind a call under way its turn comes later; an upgrade is read a second time.
            if b"expect" in fields and self.exchange is None and not parser.should_upgrade():
                self._ask_for_body()

    def on_body(self, data: bytes) -> None:
        server, count = self.server, len(data)
        self._body.append(data)
        if self._body_bytes + count > server.limits.body_bytes:
            raise body_too_large(server.limits.body_bytes)
        server.hold_bytes(self._request, count)
        self._body_bytes += count

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.should_upgrade():
            return  # an upgrade is never granted: the request is read again without it
        request = self._request
        body = self._body
        request.body = body[0] if len(body) == 1 else b"".join(body)
        self._body = []
        self.server.body_read(request, self._body_bytes)
        self._body_bytes = 0  # its bytes are the request's now, released when its answer ends
        self._reading = False
        request.read_at = self.server.time()
        if not request.keep_alive:
            self._closing = True
        self._enqueue(request)

    # --- for the exchange ---

    def write(self, data: bytes) -> None:
        """Write bytes of the present answer."""
        if self.transport is not None:
            self.server.outbox.write(self.transport, data)

    def answered(self, *, keep_alive: bool) -> None:
        """The present answer is written whole. Goes on with the next request, or closes."""
        self.exchange = None
        if not keep_alive or (self.server.draining and not self._waiting):
            self.close(linger=self._request.fault is not None)
            return
        self.idle_since = self.server.time()
        if self._waiting:
            self._loop_on()
        elif self._closing:
            self.close()
        elif self._reading:
            self._ask_for_body()

    def close(self, *, linger: bool = False) -> None:
        """Close after what is written has been sent.

        `linger`: the client may still be sending. Closing now would make its kernel throw our answer away (RST), so
        the sending side is closed and what still comes is dropped for a moment.
        """
        self._closing = True
        for request in self._waiting:
            self.server.release_bytes(len(request.body))
        self._waiting.clear()
        self.server.outbox.flush()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._ends_at = self.server.time() + self.server.timeouts.idle_seconds
        self._unsent_bytes = transport.get_write_buffer_size()
        if linger and transport.can_write_eof():
            if not self._unsent_bytes:
                self._ends_at = self.server.time() + LINGER_SECONDS
            transport.write_eof()
        else:
            transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """Close at once: the client must see that its answer is not complete. `reset`: even if it does not count."""
        self._closing = True
        self.server.outbox.flush()
        if self.transport is not None:
            if reset:
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    # --- for the server ---

    @property
    def idle(self) -> bool:
        """No request is read, waits or is answered."""
        return self.exchange is None and not self._reading and not self._waiting

    def check_time(self, now: float, timeouts: TimeoutsConfig) -> None:
        """Called a few times a second: end what takes too long to arrive, to come back or to be read."""
        if self._ends_at is not None:
            self._check_end(now, timeouts.idle_seconds)
        elif self._closing or self.exchange is not None or self._waiting:
            return
        elif not self._reading:
            if now - self.idle_since > timeouts.keep_alive_seconds:
                self.close()
        elif now - self._started_at > timeouts.request_seconds + self._body_bytes / BYTES_PER_SECOND_MIN:
            seconds = timeouts.request_seconds
            message = f"the request took more than {seconds:g} s to arrive (timeouts.request_seconds)"
            self._refuse(RequestFault(408, "request_timeout", message, close=True))

    # --- inside ---

    def _check_end(self, now: float, idle_seconds: float) -> None:
        """Closing sends what is unsent first, for as long as the client reads it; one that does not is left."""
        assert self.transport is not None and self._ends_at is not None
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent_bytes:
            self._unsent_bytes = unsent
            self._ends_at = now + (idle_seconds if unsent else LINGER_SECONDS)
        elif now > self._ends_at:
            self.abort()

    def _begin(self) -> None:
        self._reading = True
        self._request = Request()
        self._started_at = self.server.time()
        self._bare_bytes = self._trailer_bytes = 0
        self._behind_another = False

    def _ask_for_body(self) -> None:
        """The turn of the request that is being read has come: its client may wait for a 100 before it sends more."""
        request = self._request
        if self._body or request.http_1_0 or not request.method or b"expect" not in request.fields:
            return
        if self.transport is not None:
            self._started_at = self.server.time()  # until now it was we who took the time
            self.write(_CONTINUE)

    def _head_too_large(self) -> RequestFault:
        limit = self.server.limits.header_bytes
        return RequestFault(
            431, "headers_too_large", f"the headers are over {limit} bytes (limits.header_bytes)", close=True
        )

    def _refuse(self, fault: RequestFault) -> None:
        """The request being read is refused, and the rest of the connection with it."""
        if not self._reading:
            if self._closing:  # bytes behind the last request: they are nobody's
                return
            self._begin()
        request = self._request
        request.fault = fault
        request.keep_alive = False
        request.method = request.method or b"-"
        request.read_at = self.server.time()
        self.server.body_read(request, self._body_bytes)
        self.server.release_bytes(self._body_bytes)
        self._body_bytes = 0
        self._body = []
        self._reading = False
        self._closing = True
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if self.exchange is None and not self._waiting:
            self.server.start(self, request)
            return
        self._waiting.append(request)

    def _loop_on(self) -> None:
        """Answer the requests read ahead. Some are answered at once, and that leads back here: it is no recursion."""
        if self._looping:
            return
        self._looping = True
        waiting = self._waiting
        try:
            while waiting and self.exchange is None and self.transport is not None:
                self.server.start(self, waiting.popleft())
        finally:
            self._looping = False

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Upgrade is ignored, as RFC 9110 (7.8) allows: the same request is read again without that header.

        Nothing after the head is ever taken for another protocol: without a 101 it is still HTTP.
        """
        head = self._request.head_without(b"upgrade")
        self._parser = httptools.HttpRequestParser(self)
        self._begin()
        return head + rest
