"""Model calls that the gateway makes itself, for workflows that it runs: the same door, limits, scheduler and log as a
client's calls, without a socket."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import httptools

from proxy.errors import RequestFault
from proxy.http.request import Request, body_too_large

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.call import Call
    from proxy.gateway import Gateway
    from proxy.http.peers import Answering
    from proxy.identity import Identity
    from proxy.keys import Authorized


class InnerAnswer(NamedTuple):
    """How such a call ended. `whole`: the answer came as HTTP says it should."""

    status: int
    """Of the answer, an engine's or the gateway's own; 0: it broke off before there was one."""
    headers: dict[bytes, bytes]
    """By lowercase name."""
    body: bytes
    """Empty where the pieces went to `on_body`."""
    whole: bool
    call: Call | None
    """Its times, tokens and outcome; None for a call that was never admitted."""

    @property
    def ok(self) -> bool:
        """A whole answer, and no error."""
        return self.whole and 200 <= self.status < 300

    @property
    def fault_reason(self) -> str | None:
        """The machine-readable word for what went wrong; None if nothing did."""
        return None if self.ok else (self.call.reason if self.call is not None else None) or "engine_lost"


class InnerCall:
    """One call under way: to an Exchange it is the client. Made by `InnerCalls.start`."""

    def __init__(
        self,
        calls: InnerCalls,
        on_done: Callable[[InnerAnswer], None],
        on_body: Callable[[bytes], None] | None,
        on_sent: Callable[[], None] | None,
    ) -> None:
        self.on_sent = on_sent
        self.exchange: Answering | None = None
        self.authorized: Authorized | None = None
        self.write_paused = False
        self.call: Call | None = None
        self._calls = calls
        self._on_done = on_done
        self._on_body_piece = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._whole = False
        self._over = False
        self._cancelled = self._writing = False

    # --- for whoever started it ---

    def cancel(self) -> None:
        """Nobody wants the answer any more: the engine's slot is freed now, `on_done` will not be called.

        From within `on_body` it is freed a turn later: the exchange is in the middle of its answer.
        """
        if self._cancelled:
            return
        self._cancelled = self._over = True
        self._calls.running.discard(self)
        if self._writing:
            self._calls.loop.call_soon(self._leave)
        else:
            self._leave()

    def pause(self) -> None:
        """Whoever reads the pieces is slow: the engine is not read until `resume`."""
        if not self.write_paused:
            self.write_paused = True
            if self.exchange is not None:
                self.exchange.pause()

    def resume(self) -> None:
        """Go on."""
        if self.write_paused:
            self.write_paused = False
            if self.exchange is not None:
                self.exchange.resume()

    # --- Client ---

    def write(self, data: bytes) -> None:
        if not self._over:
            self._writing = True
            try:
                self._parser.feed_data(data)
            finally:
                self._writing = False

    def answered(self, *, keep_alive: bool) -> None:
        self._end()

    def abort(self, *, reset: bool = False) -> None:
        self._end()

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._on_body_piece is not None and self._status < 300:
            self._on_body_piece(data)
            return
        self._bytes += len(data)
        if self._bytes > self._calls.answer_bytes_max:
            self._pieces.clear()  # `over_limit`: the call goes on to its end, nobody keeps what it says
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._whole = True

    # --- inside ---

    def _leave(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def _end(self) -> None:
        """Told in a turn of its own: what follows may start calls, and a scheduler's actions are being carried out."""
        self.exchange = None
        if self._over:
            return
        self._over = True
        self._calls.loop.call_soon(self._tell)

    def _tell(self) -> None:
        if self._cancelled:  # since it ended
            return
        self._calls.running.discard(self)
        whole = self._whole and self._bytes <= self._calls.answer_bytes_max
        if self._whole and not whole and self.call is not None:
            self.call.reason = "answer_too_large"
        answer = InnerAnswer(self._status, self._headers, b"".join(self._pieces), whole, self.call)
        try:
            self._on_done(answer)
        except Exception as error:  # noqa: BLE001  (reported; it is one call's)
            self._calls.report("what follows an inner call", error)


class InnerCalls:
    """The gateway as its own client."""

    def __init__(self, gateway: Gateway, answer_bytes_max: int) -> None:
        self._gateway = gateway
        self.answer_bytes_max = answer_bytes_max
        """Of an answer that is kept whole; a longer one counts as failed (`answer_too_large`)."""
        self.report = gateway.faults.report
        self.loop = asyncio.get_running_loop()
        self.running: set[InnerCall] = set()

    def start(
        self,
        key_name: str,
        path: str,
        body: bytes,
        identity: Identity,
        *,
        on_done: Callable[[InnerAnswer], None],
        on_body: Callable[[bytes], None] | None = None,
        on_sent: Callable[[], None] | None = None,
        fields: dict[bytes, bytes] | None = None,
    ) -> InnerCall:
        """POST this JSON body to a path of the model API, in the name of a key and as part of a workflow.

        `on_done` is called once, in a later turn of the loop, unless the call is cancelled. `on_body`: is given the
        pieces of a good answer as they come (for a stream, whole events). `on_sent`: the request has been written to an
        engine. `fields`: further headers, by lowercase name.
        Raises RequestFault: 401 if the key has been taken away since, 413 or 503 if the body is over the limits that
        clients' bodies have.
        """
        server, keys = self._gateway.server, self._gateway.admission.keys
        if keys.configured and key_name not in keys.names:
            raise RequestFault(401, "invalid_api_key", "the API key that this belongs to is not configured any more")
        if len(body) > server.limits.body_bytes:
            raise body_too_large(server.limits.body_bytes)
        if server.buffered_bytes + len(body) > server.limits.buffered_bytes:
            message = "the gateway holds as many request bytes as it may (limits.buffered_bytes); try again later"
            raise RequestFault(503, "buffers_full", message)
        server.buffered_bytes += len(body)
        request = Request()
        request.method, request.target = b"POST", path.encode()
        request.fields = {b"content-type": b"application/json", **(fields or {})}
        request.headers = [(name, name, value) for name, value in request.fields.items()]
        request.body, request.read_at = body, monotonic()
        request.key_name, request.identity = key_name, identity
        inner = InnerCall(self, on_done, on_body, on_sent)
        self.running.add(inner)
        inner.call = self._gateway.start(inner, request)
        return inner
