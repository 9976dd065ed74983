"""One call between its client and its engine: sends the request, relays the answer, and ends in exactly one outcome."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from backends.vllm.connection import ProtocolFault
from proxy.answers import ANSWER_BYTES_MAX
from proxy.attempts import lost, our_fault
from proxy.call import Call, Outcome
from proxy.deadlines import answer_up, total_up
from proxy.energy.telling import TRAILER_LINE, HeldAnswer
from proxy.errors import RequestFault, error_answer, error_object
from proxy.http.relay import CHUNKED_END, AnswerHead, answer_head
from proxy.jsonedit import edit_members
from proxy.usage import EventReader, PlainReader, Usage, whole_answer
from scheduler.events import CallFailed, CallFinished, ClientGone, FirstToken

if TYPE_CHECKING:
    import asyncio

    from backends.vllm.connection import EngineConnection
    from proxy.admission import Admitted
    from proxy.engines import Engine
    from proxy.gateway import Gateway
    from proxy.http.peers import Client
    from proxy.http.request import Request

_ONE_EVENT_BYTES = 512
"""A shorter read is one event of a stream; vLLM's have 200 to 300 bytes."""


class Exchange:
    """Created when a call has arrived; the scheduler's actions reach it as `dispatch`, `refuse` and `abort`."""

    __slots__ = (
        "_admitted",
        "_collected",
        "_engine",
        "_gateway",
        "_head",
        "_held_answer",
        "_held_bytes",
        "_last_chunk_at",
        "_names_response",
        "_opening",
        "_paused_at",
        "_reader",
        "_take_out_usage",
        "_trace_fields",
        "_upstream",
        "_usage",
        "call",
        "client",
        "request",
    )

    def __init__(
        self,
        gateway: Gateway,
        client: Client,
        request: Request,
        call: Call,
        admitted: Admitted,
        trace_fields: bytes,
    ) -> None:
        self._gateway = gateway
        self.client = client
        self.request = request
        self.call = call
        self._admitted: Admitted | None = admitted
        """What the engine is sent; kept until the answer begins, for a retry."""
        self._trace_fields = trace_fields
        self._held_bytes = len(request.body)
        self._take_out_usage = admitted.take_out_usage
        self._names_response = call.route == "/v1/responses"
        self._engine: Engine | None = None
        self._upstream: EngineConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._head: AnswerHead | None = None
        self._held_answer: HeldAnswer | None = None
        self._reader: EventReader | PlainReader | None = None
        self._usage: Usage | None = None
        self._last_chunk_at = 0.0
        self._paused_at: float | None = None
        self._collected: list[bytes] | None = None
        """The answer's bytes, where its text tells what later calls belong to."""

    def collect(self) -> None:
        """Keep the answer's bytes for `ContentWatch`."""
        self._collected = []

    # --- the scheduler's actions ---

    def dispatch(self, engine: Engine, priority: int | None) -> None:
        """Send the request to this engine, over an idle connection or a new one."""
        call, admitted = self.call, self._admitted
        assert admitted is not None
        if priority is not None and admitted.takes_priority:
            before = ("priority",) if call.attempts else ()  # of the attempt before this one
            admitted.body = edit_members(admitted.body, before, {"priority": b"%d" % priority})
        if call.dispatched_at is None:
            call.dispatched_at = monotonic()
        call.attempts += 1
        call.engine = engine.name
        self._engine = engine
        connection = engine.pool.take() if call.attempts == 1 else None  # a retry never trusts an idle connection
        if connection is not None:
            self.opened(connection)
        else:
            self._opening = engine.pool.open(self)

    def refuse(self, fault: RequestFault) -> None:
        """Answer with an error instead of an engine's words."""
        outcome = Outcome.REFUSED
        if fault.reason in ("first_byte_timeout", "total_timeout"):
            outcome = Outcome.TIMEOUT
        elif self.call.attempts:
            outcome = Outcome.ENGINE_LOST
        keep_alive = self._write_error(fault)
        self._end(outcome, fault.status, fault.reason)
        self.client.answered(keep_alive=keep_alive)

    def abort(self) -> None:
        """Take the request back from the engine."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    # --- the engine's side (backends.vllm: Opening, Answer) ---

    def opened(self, connection: EngineConnection) -> None:
        """A connection is there: write the request."""
        self._opening = None
        engine, admitted, method = self._engine, self._admitted, self.request.method
        assert engine is not None and admitted is not None
        self._upstream = connection
        body = admitted.body
        has_length = body or method in (b"POST", b"PUT", b"PATCH")
        head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b%b%b" % (
            method,
            engine.path_prefix,
            admitted.target,
            engine.pool.authority,
            engine.own_fields,
            admitted.fields,
            self._trace_fields,
            b"content-length: %d\r\n\r\n" % len(body) if has_length else b"\r\n",
        )
        self.call.sent_at = monotonic()
        connection.send(self, head, body, no_body=method == b"HEAD")
        if self.client.on_sent is not None:
            self.client.on_sent()
        if self.client.write_paused:  # an earlier answer on this connection is not read yet
            self.pause()

    def open_failed(self, reason: str, detail: str) -> None:
        """No connection: another engine may be tried."""
        self._opening = self._upstream = None
        self._attempt_failed(reason, detail)

    def received(self, connection: EngineConnection, body: bytes, ended: bool) -> None:
        """Some of the answer: relayed in one write."""
        call = self.call
        now = monotonic()
        head = self._head
        if head is None:
            try:
                head = self._begin_answer(connection, body if ended else b"")
            except ProtocolFault as fault:
                self.abort()
                self._attempt_failed("engine_protocol", str(fault))
                return
            out = head.data
        else:
            out = b""
        if body:
            if call.first_byte_at is None:
                self._first_body(now, ended)
            elif call.stream:
                self._gateway.metrics.itl.observe(now - self._last_chunk_at)
            # Of a stream that its client reads slowly, many events come at once.
            call.response_chunks += 1 if len(body) < _ONE_EVENT_BYTES else body.count(b"\n\n") or 1
            call.response_bytes += len(body)
            if self._collected is not None and call.response_bytes <= ANSWER_BYTES_MAX:  # a longer one is not looked at
                self._collected.append(body)
        self._last_chunk_at = now
        if self._names_response and body:
            workflow_id = call.identity.workflow_id or call.id
            self._names_response = not self._gateway.admission.roots.remember_in(call.key_name, body, workflow_id)
        reader = self._reader
        if reader is not None:
            body = reader.feed(body)
            if ended:
                body += reader.end()
        if head.chunked:
            out += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if ended:
                out += self._gateway.joules.last_chunk(call, reader) if head.trailers else CHUNKED_END
        else:
            out += body
        if self._held_answer is not None:
            out = self._let_go(self._held_answer, out, ended)
        if out:
            self.client.write(out)
        if ended:
            self._upstream = None
            self._answer_complete(head)

    def lost(self, reason: str, detail: str) -> None:
        """The engine's connection ended before the answer did."""
        self._upstream = None
        self._attempt_failed(reason, detail)

    def cancel(self, fault: RequestFault, outcome: Outcome = Outcome.REFUSED) -> None:
        """It is ended with its workflow, or its time is up: the client gets this error, the engine is free."""
        self.abort()
        self._fail(outcome, fault, engine_fault=False)

    def engine_down(self, engine: Engine, detail: str) -> None:
        """Its probes have given this engine up. What has begun to be answered goes on, what has not may go elsewhere:
        else it would wait for an engine that accepts connections and does nothing until `first_byte_seconds` are over.
        """
        if self._engine is engine and (self._upstream.silent if self._upstream is not None else self._opening):
            self.abort()
            self._attempt_failed("engine_down", detail)

    # --- the client's side (proxy.http: Exchange) ---

    def client_gone(self) -> None:
        """Nobody waits for the answer any more: free the engine's slot now."""
        call = self.call
        self._read_usage()
        self._gateway.tell(ClientGone(call.id, self._tokens_seen()))  # the scheduler has what runs aborted
        self._end(Outcome.CLIENT_GONE, call.status, "client_gone")

    def pause(self) -> None:
        """The client is slow: stop reading the answer, so that the engine's side fills up and not our memory."""
        self._paused_at = monotonic()
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._paused_at = None
        self._last_chunk_at = monotonic()
        if self._upstream is not None:
            self._upstream.resume()

    # --- time ---

    def check_time(self, now: float) -> None:
        """Called a few times a second: end the call if one of its times is up."""
        call, timeouts = self.call, self._gateway.timeouts
        up = total_up(call, timeouts, now)
        # Held, or connecting: these have times of their own.
        if up is None and self._upstream is not None and call.sent_at is not None:
            up = answer_up(call, timeouts, now, paused_at=self._paused_at, last_chunk_at=self._last_chunk_at)
        if up is not None:
            self.cancel(RequestFault(504, *up), Outcome.TIMEOUT)

    # --- inside ---

    def _begin_answer(self, connection: EngineConnection, whole_body: bytes) -> AnswerHead:
        """The engine's head is there: there will be no retry. (vLLM sends it at once, long before the first token.)

        `whole_body`: the body, if it has come whole with the head, as short answers do.
        """
        gateway, call = self._gateway, self.call
        engine = self._engine
        assert engine is not None
        ours = gateway.own_answer_headers(call, engine)
        if whole_body and connection.status < 400:
            self._usage = whole_answer(whole_body)
            ours += gateway.joules.lines(call, self._usage)
        trailer = TRAILER_LINE if gateway.joules.told(engine) and not whole_body else b""
        own_id = b"x-request-id: %b\r\n" % call.request_id.encode("latin-1")
        head = answer_head(connection, self.request, ours, own_id, trailer)
        self._head = head
        call.status = connection.status
        kind = head.content_type
        call.stream = kind.startswith(b"text/event-stream")
        if head.encoded:
            self._reader = self._usage = None  # compressed: passed on, not looked into
        elif call.stream and head.chunked:
            energy = partial(gateway.joules.members, call)
            self._reader = EventReader(take_out=self._take_out_usage, fingerprint=engine.fingerprint, annotate=energy)
        elif not kind.startswith(b"application/json"):
            self._usage = None
        elif self._usage is None:
            self._reader = PlainReader()
            if trailer and call.status < 400:
                self._held_answer = HeldAnswer(gateway.joules, call)
        self._admitted = None
        self._release()
        return head

    def _let_go(self, held: HeldAnswer, out: bytes, ended: bool) -> bytes:
        if out := held.feed(out, self._reader, ended=ended):
            self._held_answer = None
        return out

    def _first_body(self, now: float, ended: bool) -> None:
        self.call.first_byte_at = now
        if not ended:  # else the call's end says as much
            self._gateway.tell(FirstToken(self.call.id))

    def _answer_complete(self, head: AnswerHead) -> None:
        call = self.call
        assert call.status is not None
        self._read_usage(done=True)
        if call.status < 400:
            self._end(Outcome.OK, call.status, None)
        else:
            outcome = Outcome.ENGINE_4XX if call.status < 500 else Outcome.ENGINE_5XX
            self._end(outcome, call.status, outcome.value)
        seen = self._tokens_seen() if call.stream and call.prompt_tokens is None else 0
        used = call.prompt_tokens, call.cached_tokens, call.output_tokens
        self._gateway.tell(CallFinished(call.id, *used, seen, call.status, getattr(self._reader, "has_error", False)))
        self.client.answered(keep_alive=head.keep_alive)

    def _read_usage(self, *, done: bool = False) -> None:
        reader, usage, call = self._reader, self._usage, self.call
        if reader is not None:
            if not done:
                reader.end()
            if isinstance(reader, EventReader) and reader.fingerprint is not None and self._engine is not None:
                self._engine.fingerprint = reader.fingerprint
            usage = reader.usage
        if usage is None:
            return
        call.prompt_tokens, call.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        call.output_tokens = usage.output_tokens

    def _tokens_seen(self) -> int:
        """At least so many tokens were made, as far as one can tell from outside: an engine says it at the end only."""
        return max(self.call.output_tokens or 0, self.call.response_chunks)

    def _attempt_failed(self, reason: str, detail: str) -> None:
        """The engine's connection failed: before an answer the scheduler may try again, after it the client is told."""
        call = self.call
        self._paused_at = None
        self._gateway.engine_failed(call, reason, detail)
        if (ours := our_fault(reason)) is not None:
            self._fail(Outcome.REFUSED, ours, engine_fault=False)
        elif self._head is None and reason != "engine_protocol":
            self._gateway.tell(CallFailed(call.id, reason, retryable=True, engine_fault=True))
        else:
            self._fail(Outcome.ENGINE_LOST, lost(reason), engine_fault=True)

    def _fail(self, outcome: Outcome, fault: RequestFault, *, engine_fault: bool) -> None:
        """The call cannot be completed. After a 200 the fault is an event of the stream, never a false end."""
        call, client, head, reader = self.call, self.client, self._head, self._reader
        keep_alive = None
        if self._held_answer is not None:  # nothing has gone out so far
            self._held_answer = head = call.status = None
        if head is None:
            keep_alive = self._write_error(fault)
        elif isinstance(reader, EventReader) and fault.reason != "client_stalled":
            events = reader.cut() + b"data: " + error_object(fault.status, fault.reason, fault.message) + b"\n\n"
            client.write(b"%x\r\n%b\r\n%b" % (len(events), events, CHUNKED_END))
            keep_alive = head.keep_alive
        else:
            client.exchange = None
            # A body cut short must not look complete: to HTTP/1.0 a regular end of the connection is its end.
            client.abort(reset=self.request.http_1_0)
        self._read_usage()
        self._end(outcome, call.status or fault.status, fault.reason)
        self._gateway.tell(CallFailed(call.id, fault.reason, False, engine_fault, self._tokens_seen()))
        if keep_alive is not None:  # last: the client's next request begins here
            client.answered(keep_alive=keep_alive)

    def _write_error(self, fault: RequestFault) -> bool:
        """An error answer of our own; returns whether its connection may be kept."""
        call, request = self.call, self.request
        keep_alive = request.keep_alive and not fault.close and not self._gateway.server.draining
        extra = self._gateway.error_headers(call)
        self.client.write(error_answer(fault, extra, close=not keep_alive, head_only=request.method == b"HEAD"))
        self._release()
        return keep_alive

    def _release(self) -> None:
        held, self._held_bytes = self._held_bytes, 0
        if held:
            self._gateway.server.release_bytes(held)
        self.request.body = b""

    def _end(self, outcome: Outcome, status: int | None, reason: str | None) -> None:
        call = self.call
        call.outcome, call.status, call.reason = outcome, status, reason
        call.finished_at = monotonic()
        self._release()
        if self._collected is not None and self._gateway.watch is not None:
            self._gateway.watch.answered(call, self._collected)
        self._gateway.ended(self)
