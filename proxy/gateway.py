"""The shell around the mind: requests become events, actions become I/O, and every call is counted once."""

from __future__ import annotations

import asyncio
import os
import time
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from proxy.admission import Admission
from proxy.call import Call, Outcome
from proxy.errors import RequestFault, error_answer
from proxy.exchange import Exchange
from proxy.http.relay import safe_value
from proxy.http.server import SWEEP_SECONDS, Server
from proxy.identity import Identity
from proxy.routes import OTHER
from scheduler.actions import Abort, Dispatch, Reject
from scheduler.events import CallArrived, Draining, Tick

if TYPE_CHECKING:
    from proxy.calllog import CallLog
    from proxy.config import Config
    from proxy.engines import Engine
    from proxy.eventlog import EventLogWriter
    from proxy.http.connection import ClientConnection
    from proxy.http.request import Request
    from proxy.metrics import Metrics
    from proxy.tracing import Tracing
    from scheduler.actions import Action
    from scheduler.core import Scheduler
    from scheduler.events import Event

ENDED_MAX = 64
_NOBODY = Identity(workflow_id="", source="none")


class Gateway:
    """Requests in, answers out. One object lives as long as the process; a reload changes its parts."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        metrics: Metrics,
        log: CallLog,
        tracing: Tracing | None = None,
        event_log: EventLogWriter | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.metrics = metrics
        self.log = log
        self.tracing = tracing
        self.event_log = event_log
        self.timeouts = config.timeouts
        self.admission = Admission(config)
        self.engines: dict[str, Engine] = {}
        self.exchanges: dict[str, Exchange] = {}
        self.server = Server(self, config.limits, config.timeouts)
        self._loop = asyncio.get_running_loop()
        self._id_prefix = f"jg-{os.urandom(6).hex()}-"
        self._ids = 0
        self._ended: list[Call] = []
        """Calls that have ended and are not yet counted and logged."""
        self._wakes: set[asyncio.TimerHandle] = set()
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)

    # --- the server's handler ---

    def check_before_body(self, connection: ClientConnection, request: Request) -> None:
        """401 before a body is read (or asked for with 100-continue)."""
        request.key_name = self.admission.authenticate(request, connection)

    def start(self, connection: ClientConnection, request: Request) -> None:
        """A request is whole (or cannot be understood): make it a call."""
        started = perf_counter()
        self._ids += 1
        call_id = f"{self._id_prefix}{self._ids:x}"
        body_bytes = len(request.body)
        call = Call(
            call_id,
            call_id,
            request.method.decode("latin-1"),
            "",
            OTHER.label,
            request.read_at,
            time.time(),
            _NOBODY,
            self.scheduler.policy.name,
            body_bytes,
        )
        try:
            if request.fault is not None:
                raise request.fault
            admitted = self.admission.admit(request, connection, call)
        except RequestFault as fault:
            self._refuse_unadmitted(connection, request, call, fault)
            return
        if admitted.models_asked and len(self.engines) > 1:
            self._answer_models(connection, request, call)
            return
        trace_fields = b""
        if self.tracing is not None:
            trace_fields = self.tracing.start(call, request.fields)
        exchange = Exchange(self, connection, request, call, admitted, trace_fields)
        connection.exchange = exchange
        self.exchanges[call_id] = exchange
        identity = call.identity
        event = CallArrived(
            call_id,
            call.key_name,
            call.model,
            identity.workflow_id,
            body_bytes // 4,
            call.max_output_tokens,
            identity.node,
            identity.after,
            identity.deadline_ms,
            identity.workflow_class,
            identity.expected_output_tokens,
            identity.priority_hint,
            identity.final,
        )
        self.tell(event)
        call.overhead_seconds = perf_counter() - started  # up to the engine's socket, if the call was sent at once

    # --- the mind's shell ---

    def tell(self, event: Event) -> None:
        """Give the scheduler an event and carry out what it says."""
        now = monotonic()
        actions = self.scheduler.handle(event, now)
        if self.event_log is not None:
            self.event_log.write(event, now, actions)
        for action in actions:
            self._perform(action, now)

    def _perform(self, action: Action, now: float) -> None:
        kind = type(action)
        if kind is Dispatch:
            assert isinstance(action, Dispatch)
            exchange = self.exchanges[action.call_id]
            exchange.dispatch(self.engines[action.engine], action.priority)
        elif kind is Reject:
            assert isinstance(action, Reject)
            fault = RequestFault(
                action.status, action.reason, action.message, retry_after_seconds=action.retry_after_seconds
            )
            if action.reason == "unknown_model":
                fault.param = "model"
            self.exchanges[action.call_id].refuse(fault)
        elif kind is Abort:
            assert isinstance(action, Abort)
            self.exchanges[action.call_id].abort()
        else:
            self._wake_at(action.at - now)  # type: ignore[union-attr]  # WakeAt is what is left

    def _wake_at(self, seconds: float) -> None:
        def wake() -> None:
            self._wakes.discard(handle)
            self.tell(Tick())

        handle = self._loop.call_later(max(0.0, seconds), wake)
        self._wakes.add(handle)

    # --- for the exchanges ---

    def ended(self, exchange: Exchange) -> None:
        """A call has ended, with its outcome set: count it, log it, forget it."""
        call = exchange.call
        del self.exchanges[call.id]
        self._account(call)

    def engine_failed(self, call: Call, reason: str, detail: str) -> None:
        """An attempt at an engine failed; the scheduler decides what follows."""
        self.metrics.engine_failed(call.engine or "-", reason)
        self.log.event("attempt_failed", engine=call.engine, request_id=call.request_id, reason=reason, detail=detail)

    def own_answer_headers(self, call: Call, engine: Engine) -> bytes:
        """What every answer of an engine gets from us."""
        identity = call.identity
        workflow = identity.workflow_id
        assert call.dispatched_at is not None
        line = b"x-workflow-id: %b\r\nx-joulegate-decision: %b; engine=%b; held_ms=%.1f\r\n" % (
            safe_value(workflow) if workflow else call.id.encode("ascii"),
            call.policy.encode("ascii"),
            engine.shown_name,
            (call.dispatched_at - call.arrived_at) * 1e3,
        )
        if identity.node is not None:
            line = b"x-workflow-node: %b\r\n%b" % (safe_value(identity.node), line)
        return line

    def error_headers(self, call: Call) -> tuple[tuple[bytes, bytes], ...]:
        """What an error answer of our own carries besides its reason."""
        workflow = safe_value(call.identity.workflow_id or call.id)
        return ((b"x-request-id", call.request_id.encode("latin-1")), (b"x-workflow-id", workflow))

    # --- the end ---

    def drain(self) -> None:
        """No new calls; running ones may finish."""
        self.server.stop_listening()
        self.tell(Draining())

    def close(self) -> None:
        """Stop everything at once."""
        self._sweep.cancel()
        for handle in self._wakes:
            handle.cancel()
        self.server.close()
        for engine in self.engines.values():
            engine.pool.close()

    # --- inside ---

    def _refuse_unadmitted(
        self, connection: ClientConnection, request: Request, call: Call, fault: RequestFault
    ) -> None:
        """An error for a request that never became a call of the scheduler's."""
        keep_alive = request.keep_alive and not fault.close and not self.server.draining
        head_only = request.method == b"HEAD"
        self._finish_unscheduled(connection, request, call, Outcome.REFUSED, fault.status, fault.reason)
        connection.write(error_answer(fault, self.error_headers(call), close=not keep_alive, head_only=head_only))
        connection.answered(keep_alive=keep_alive)

    def _answer_models(self, connection: ClientConnection, request: Request, call: Call) -> None:
        """GET /v1/models of several engines: each model once, its entry as its engine wrote it."""
        entries: dict[str, dict[str, Any]] = {}
        for engine in self.engines.values():
            for entry in engine.models or ():
                entries.setdefault(entry["id"], entry)
        body = orjson.dumps({"object": "list", "data": list(entries.values())})
        self._finish_unscheduled(connection, request, call, Outcome.OK, 200, None)
        keep_alive = request.keep_alive and not self.server.draining
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n" % (
            len(body),
            b"x-request-id: %b\r\n" % call.request_id.encode("latin-1"),
            b"" if keep_alive else b"connection: close\r\n",
        )
        connection.write(head if request.method == b"HEAD" else head + body)
        connection.answered(keep_alive=keep_alive)

    def _finish_unscheduled(
        self,
        connection: ClientConnection,
        request: Request,
        call: Call,
        outcome: Outcome,
        status: int,
        reason: str | None,
    ) -> None:
        self.server.release_bytes(len(request.body))
        request.body = b""
        call.outcome, call.status, call.reason = outcome, status, reason
        call.finished_at = monotonic()
        self._account(call)

    def _account(self, call: Call) -> None:
        if self.tracing is not None:
            self.tracing.finish(call)
        self._ended.append(call)
        if len(self._ended) >= ENDED_MAX:
            self.settle()

    def settle(self) -> None:
        """Count and log the calls that have ended since the last time.

        Many at once, a few times a second and before each scrape: the code for it is then at hand in the processor's
        caches, which makes it half as expensive.
        """
        ended, self._ended = self._ended, []
        for call in ended:
            self.metrics.finished(call)
            self.log.write(call)

    def _sweep_now(self) -> None:
        now = monotonic()
        for exchange in list(self.exchanges.values()):
            exchange.check_time(now)
        self.settle()
        self.log.flush()
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)
