"""A client's connection: bytes in, whole requests out, one at a time; and its side of the back-pressure."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from proxy.errors import RequestFault
from proxy.http.request import Request, body_too_large, check_head

if TYPE_CHECKING:
    from proxy.http.server import Server
    from proxy.keys import Authorized

BYTES_PER_SECOND_MIN = 65_536
"""A body may take `timeouts.request_seconds` and a second more for each so many bytes of it."""
LINGER_SECONDS = 2.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange(Protocol):
    """The answering of one request; the connection tells it what happens to the client meanwhile."""

    def client_gone(self) -> None:
        """The client closed its connection. Nothing can be written any more."""

    def pause(self) -> None:
        """The client reads slower than we write: stop for now."""

    def resume(self) -> None:
        """The client has caught up."""


class ClientConnection(asyncio.Protocol):
    """Requests that a client pipelines are read ahead up to a limit and answered in their order.

    Reading goes on while a call is under way, since that is how a client's leaving is seen at once.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_closing",
        "_head_bytes",
        "_linger_until",
        "_parser",
        "_reading",
        "_reading_paused",
        "_request",
        "_started_at",
        "_waiting",
        "authorized",
        "exchange",
        "idle_since",
        "server",
        "transport",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.authorized: Authorized | None = None
        """The valid key that this client sent last."""
        self.write_paused = False
        """The client reads slower than it is written to."""
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._request = Request()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._started_at = 0.0
        self._reading: bool = False
        """A request has begun and is not yet whole."""
        self._reading_paused = False
        self._waiting: deque[Request] = deque()
        self._closing = False
        """Nothing more is read: the connection ends with the last answer that is due."""
        self._linger_until: float | None = None

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self.server.limits.response_buffer_bytes)
        self.idle_since = self._started_at = self.server.time()
        self.server.connected(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # the rest of a refused request
        if not self._reading:
            self._begin()
        if self._request.fault is None and not self._request.method:
            self._head_bytes += len(data)
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestFault):
                raise
            self._refuse(error.__context__)
            return
        except httptools.HttpParserInvalidMethodError:
            self._refuse(RequestFault(400, "malformed_http", "not an HTTP request: unknown method", close=True))
            return
        except httptools.HttpParserError as error:
            self._refuse(RequestFault(400, "malformed_http", f"not a valid HTTP request: {error}", close=True))
            return
        if self._reading and not self._request.method and self._head_bytes > self.server.limits.header_bytes:
            self._refuse(self._head_too_large())

    def eof_received(self) -> bool:
        return False  # a client that will not read the answer's end: the transport closes, connection_lost follows

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._parser = None  # parser and connection hold each other
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
            self._begin()
        request = self._request
        request.target += url
        if len(request.target) > self.server.limits.url_bytes:
            limit = self.server.limits.url_bytes
            raise RequestFault(414, "url_too_long", f"the URL is over {limit} bytes (limits.url_bytes)", close=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request.method:
            return  # trailers of a chunked body are not passed on
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
        if self._head_bytes > limits.header_bytes and request.head_bytes() > limits.header_bytes:
            raise self._head_too_large()
        version = parser.get_http_version()
        request.method = parser.get_method()
        request.keep_alive = parser.should_keep_alive()
        check_head(request, version, limits.body_bytes)
        fields = request.fields
        if b"content-length" in fields or b"transfer-encoding" in fields:
            server.check_before_body(self, request)
            if b"expect" in fields and self.transport is not None and not request.http_1_0 and self.exchange is None:
                self.transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        server, count = self.server, len(data)
        self._body.append(data)
        if self._body_bytes + count > server.limits.body_bytes:
            raise body_too_large(server.limits.body_bytes)
        if server.buffered_bytes + count > server.limits.buffered_bytes:
            message = "the gateway holds as many request bytes as it may (limits.buffered_bytes); try again later"
            raise RequestFault(503, "buffers_full", message, close=True)
        server.buffered_bytes += count
        self._body_bytes += count

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.should_upgrade():
            return  # an upgrade is never granted: _after_upgrade reads the request again without it
        request = self._request
        body = self._body
        request.body = body[0] if len(body) == 1 else b"".join(body)
        self._body = []
        self._body_bytes = 0  # its bytes are the request's now, released when its answer ends
        self._reading = False
        self._head_bytes = 0
        request.read_at = self.server.time()
        if not request.keep_alive:
            self._closing = True
        self._enqueue(request)

    # --- for the exchange ---

    def write(self, data: bytes) -> None:
        """Write bytes of the present answer."""
        if self.transport is not None:
            self.transport.write(data)

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

    def close(self, *, linger: bool = False) -> None:
        """Close after what is written has been sent.

        `linger`: the client may still be sending. Closing now would make its kernel throw our answer away (RST), so
        the sending side is closed and what still comes is dropped for a moment.
        """
        self._closing = True
        for request in self._waiting:
            self.server.release_bytes(len(request.body))
        self._waiting.clear()
        if self.transport is None or self.transport.is_closing():
            return
        if linger and self.transport.can_write_eof():
            self._linger_until = self.server.time() + LINGER_SECONDS
            self.transport.write_eof()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the client must see that its answer is not complete."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    # --- for the server ---

    @property
    def idle(self) -> bool:
        """No request is read, waits or is answered."""
        return self.exchange is None and not self._reading and not self._waiting

    def overdue(self, now: float, request_seconds: float, keep_alive_seconds: float) -> RequestFault | bool:
        """The error for a request that takes too long to arrive; True for a connection idle for too long."""
        if self._linger_until is not None:
            return now > self._linger_until
        if self._closing or self.exchange is not None or self._waiting:
            return False
        if not self._reading:
            return now - self.idle_since > keep_alive_seconds
        if now - self._started_at <= request_seconds + self._body_bytes / BYTES_PER_SECOND_MIN:
            return False
        message = f"the request took more than {request_seconds:g} s to arrive (timeouts.request_seconds)"
        return RequestFault(408, "request_timeout", message, close=True)

    def refuse(self, fault: RequestFault) -> None:
        """Answer with an error what has been read so far of a request, and close."""
        self._refuse(fault)

    # --- inside ---

    def _begin(self) -> None:
        self._reading = True
        self._request = Request()
        self._started_at = self.server.time()

    def _head_too_large(self) -> RequestFault:
        limit = self.server.limits.header_bytes
        return RequestFault(
            431, "headers_too_large", f"the headers are over {limit} bytes (limits.header_bytes)", close=True
        )

    def _refuse(self, fault: RequestFault) -> None:
        """The request being read is refused, and the rest of the connection with it."""
        if not self._reading:
            if self._closing:  # bytes behind a request that said it is the last: they are nobody's
                return
            self._begin()
        request = self._request
        request.fault = fault
        request.keep_alive = False
        request.method = request.method or b"-"
        request.read_at = self.server.time()
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
        if len(self._waiting) >= self.server.limits.pipelined_requests and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def _loop_on(self) -> None:
        """Answer the requests read ahead, without recursion however many are answered at once."""
        waiting = self._waiting
        while waiting and self.exchange is None and self.transport is not None:
            self.server.start(self, waiting.popleft())
        if self._reading_paused and not waiting and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def _after_upgrade(self, rest: bytes) -> None:
        """Upgrade is ignored, as RFC 9110 (7.8) allows: the same request is read again without that header.

        Nothing after the head is ever taken for another protocol: without a 101 it is still HTTP.
        """
        request = self._request
        lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target)]
        lines += [
            b"%b: %b\r\n" % (name, value)
            for lower, name, value in request.headers
            if lower not in (b"upgrade", b"connection", b"http2-settings", b"expect")
        ]
        self._parser = httptools.HttpRequestParser(self)
        self._begin()
        self.data_received(b"".join(lines) + b"\r\n" + rest)
