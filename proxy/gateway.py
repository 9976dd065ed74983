"""The shell around the mind: requests become events, actions become I/O, and every call is counted once."""

from __future__ import annotations

import asyncio
import os
import time
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from proxy.admission import Admission
from proxy.arrival import arrived
from proxy.call import Call, Outcome
from proxy.deadlines import impossible_line
from proxy.energy.telling import Joules
from proxy.errors import RequestFault, error_answer
from proxy.exchange import Exchange
from proxy.faults import Faults
from proxy.http.relay import safe_value
from proxy.http.server import SWEEP_SECONDS, Server
from proxy.identity import NOTHING_SAID
from proxy.inner import InnerCalls
from proxy.models import answer_models
from proxy.own.request import OwnRequest
from proxy.own.router import KEYLESS, PREFIXES, Router
from proxy.policies import decided_by, report_failed, rule_words
from proxy.routes import OTHER
from scheduler.actions import Abort, Dispatch, ExperimentAction, Park, PolicyFailed, Reject, Wake, WakeAt
from scheduler.events import CallFailed, Draining, Tick

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.calllog import CallLog
    from proxy.config import Config
    from proxy.engines import Engine
    from proxy.eventlog import EventLogWriter
    from proxy.http.peers import Client
    from proxy.http.request import Request
    from proxy.metrics import Metrics
    from proxy.tracing import Tracing
    from proxy.watching import ContentWatch
    from proxy.workflows.config import WorkflowsConfig
    from scheduler.actions import Action, SetCap, SetClock
    from scheduler.core import Scheduler
    from scheduler.events import EngineStatus, Event

ENDED_MAX = 64


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
        self.joules = Joules(scheduler.energy)
        self.timeouts = config.timeouts
        self.faults = Faults(log.event)
        self.admission = Admission(config)
        self.engines: dict[str, Engine] = {}
        self.exchanges: dict[str, Exchange] = {}
        self.server = Server(self, config.limits, config.timeouts)
        self.router = Router(self.faults)
        self.inner = InnerCalls(self, config.limits.inner_answer_bytes)
        self.watch: ContentWatch | None = None
        """Looks at content, while the policy (or the configuration) wants to know."""
        self.set_power: Callable[[SetCap | SetClock], None] | None = None
        """Carries out what is decided of GPUs' limits; answers with `CapApplied`."""
        self.tell_experiment: Callable[[ExperimentAction], None] | None = None
        self.park: Callable[[Park | Wake], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._id_prefix = f"jg-{os.urandom(6).hex()}-"
        self._ids = 0
        self._ended: list[Call] = []
        """Calls that have ended and are not yet counted and logged."""
        self._wake: asyncio.TimerHandle | None = None
        self._wake_when = 0.0
        """The one tick that the scheduler waits for: after it, it asks for the next."""
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)

    # --- the server's handler ---

    def check_before_body(self, connection: Client, request: Request) -> None:
        """401 before a body is read (or asked for with 100-continue)."""
        self.admission.check_before_body(request, connection, keyless=request.target.startswith(KEYLESS))

    def start(self, connection: Client, request: Request) -> Call:
        """A request is whole (or cannot be understood): make it a call, or answer it here."""
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
            NOTHING_SAID,
            "-" if self.scheduler.experiments.running else self.scheduler.policy.name,  # no arm has it yet
            body_bytes,
        )
        try:
            if request.fault is not None:
                raise request.fault
            if request.target.startswith(PREFIXES) and request.method != b"OPTIONS":
                self._start_own(connection, request, call)
                return call
            admitted = self.admission.admit(request, connection, call)
        except RequestFault as fault:
            self.refuse_unadmitted(connection, request, call, fault)
            return call
        if admitted.models_asked and len(self.engines) > 1 and any(engine.models for engine in self.engines.values()):
            answer_models(self, connection, request, call)
            return call
        trace_fields = b""
        if self.tracing is not None:
            trace_fields = self.tracing.start(call, request.fields)
        document, admitted.document = admitted.document, None  # else it would be held as long as the call
        exchange = Exchange(self, connection, request, call, admitted, trace_fields)
        connection.exchange = exchange
        self.exchanges[call_id] = exchange
        watch = self.watch if document is not None and not call.identity.workflow_id else None
        self.tell(arrived(call, watched=watch is not None))
        call.policy = decided_by(self.scheduler, call)
        call.overhead_seconds = perf_counter() - started  # up to the engine's socket, if the call was sent at once
        watch = self.watch
        if (
            watch is not None
            and document is not None
            and not call.identity.workflow_id
            and watch.arrived(call, document)
        ):
            exchange.collect()
        return call

    def _start_own(self, client: Client, request: Request, call: Call) -> None:
        """A request that no engine ever sees."""
        key_name = self.admission.admit_own(request, client, call)
        own = OwnRequest(self, client, request, call, key_name)
        client.exchange = own
        self.router.start(own)

    # --- the mind's shell ---

    def tell(self, event: Event) -> None:
        """Give the scheduler an event and carry out what it says."""
        now = monotonic()
        actions = self.scheduler.handle(event, now)
        if self.event_log is not None:
            self.event_log.write(event, now, actions)
        if actions:
            self._carry_out(actions, now)

    def _carry_out(self, actions: list[Action], now: float) -> None:
        for action in actions:
            try:
                self._perform(action, now)
            except Exception as error:  # noqa: BLE001  (reported; the other actions are other people's calls)
                self._not_performed(action, error)

    def _not_performed(self, action: Action, error: Exception) -> None:
        """An action could not be carried out, for a call that is not there (any more) or by a fault of ours: that call
        ends, so that it takes nobody's place, and no other does."""
        self.faults.report(f"action {type(action).__name__}", error)
        call_id: str | None = getattr(action, "call_id", None)
        if call_id is None:
            return
        if (exchange := self.exchanges.get(call_id)) is not None:
            self._give_up(exchange)
        if call_id in self.scheduler.calls:
            self.tell(CallFailed(call_id, "internal", retryable=False, engine_fault=False))

    def _give_up(self, exchange: Exchange) -> None:
        """End a call whose own code failed: its connections close, whatever state they are in."""
        try:
            exchange.abort()
            exchange.client.exchange = None
            exchange.client.abort()
            if exchange.call.id in self.exchanges:
                exchange.client_gone()
        except Exception as error:  # noqa: BLE001  (reported)
            self.faults.report("giving a call up", error, request_id=exchange.call.request_id)
            self.exchanges.pop(exchange.call.id, None)

    def _perform(self, action: Action, now: float) -> None:
        if isinstance(action, Dispatch):
            exchange = self.exchanges[action.call_id]
            exchange.call.policy = decided_by(self.scheduler, exchange.call)
            exchange.dispatch(self.engines[action.engine], action.priority)
        elif isinstance(action, Reject):
            self.exchanges[action.call_id].refuse(_fault_of(action))
        elif isinstance(action, Abort):
            self.exchanges[action.call_id].abort()
        elif isinstance(action, WakeAt):
            self._wake_at(action.at - now)
        elif isinstance(action, PolicyFailed):
            report_failed(self, action)
        elif isinstance(action, ExperimentAction):
            if self.tell_experiment is not None:
                self.tell_experiment(action)
        elif isinstance(action, Park | Wake):
            if self.park is not None:
                self.park(action)
        elif self.set_power is not None:  # what is left are GPUs' limits
            self.set_power(action)

    def _wake_at(self, seconds: float) -> None:
        at = self._loop.time() + max(0.0, seconds)
        if self._wake is not None:
            if self._wake_when <= at:  # uvloop gives no `when` of what is due at once
                return
            self._wake.cancel()
        self._wake, self._wake_when = self._loop.call_at(at, self._wake_now), at

    def _wake_now(self) -> None:
        self._wake = None
        self.tell(Tick())

    def probed(self, engine: Engine, status: EngineStatus) -> None:
        """A probe has ended. Calls that still wait for a word of an engine that probes have given up go elsewhere.

        Only if there is an elsewhere: an engine's API server may stall for seconds and its work go on all the same.
        """
        self.tell(status)
        states = self.scheduler.engines
        state = states.get(engine.name)
        if status.healthy or state is None or state.breaker.state != "open":
            return
        others = [other for other in states.values() if other.seen_healthy and other.breaker.state == "closed"]
        for exchange in list(self.exchanges.values()):
            if any(other.serves(exchange.call.model) for other in others):
                exchange.engine_down(engine, engine.detail)

    # --- for the exchanges ---

    def ended(self, exchange: Exchange) -> None:
        """A call has ended, with its outcome set: count it, log it, forget it."""
        call = exchange.call
        del self.exchanges[call.id]
        self._account(call)

    def own_ended(self, body_bytes: int, call: Call) -> None:
        """A request that was answered here has ended, with its outcome set."""
        self.server.release_bytes(body_bytes)
        self._account(call)

    def engine_failed(self, call: Call, reason: str, detail: str) -> None:
        """An attempt at an engine failed; the scheduler decides what follows."""
        self.metrics.engine_failed(call.engine or "-", reason)
        self.log.event("attempt_failed", engine=call.engine, request_id=call.request_id, reason=reason, detail=detail)

    def own_answer_headers(self, call: Call, engine: Engine | None) -> bytes:
        """What every answer gets from us that is no error of ours; no engine: the answer is made here."""
        identity = call.identity
        workflow, sent_at = identity.workflow_id, call.dispatched_at
        line = b"x-workflow-id: %b\r\nx-joulegate-decision: %b; engine=%b; held_ms=%.1f%b\r\n" % (
            safe_value(workflow) if workflow else call.id.encode("ascii"),
            call.policy.encode("ascii"),
            engine.shown_name if engine is not None else b"-",
            0.0 if sent_at is None else (sent_at - call.arrived_at) * 1e3,
            rule_words(self.scheduler, call.id) if engine is not None else b"",
        )
        if identity.node is not None:
            line = b"x-workflow-node: %b\r\n%b" % (safe_value(identity.node), line)
        return line + impossible_line(self.scheduler, call.id)

    def error_headers(self, call: Call) -> tuple[tuple[bytes, bytes], ...]:
        """What an error answer of our own carries besides its reason."""
        workflow = safe_value(call.identity.workflow_id or call.id)
        return ((b"x-request-id", call.request_id.encode("latin-1")), (b"x-workflow-id", workflow))

    def configure_watch(self, config: WorkflowsConfig) -> None:
        """Content is looked at where that is of use: by a policy that knows workflows, or because it is asked for."""
        wanted = config.inference == "on" or (config.inference == "auto" and self.scheduler.policy.uses_workflows)
        if not wanted:
            self.watch = None
        elif self.watch is None:
            from proxy.watching import ContentWatch  # with numpy, whose memory only those pay who look at content

            self.watch = ContentWatch(self, config.inference_bytes)
        else:
            self.watch.inference.bytes_max = config.inference_bytes

    def progress(self, engine: str) -> tuple[tuple[str, int], ...]:
        """How many tokens each stream from an engine has shown so far, about."""
        calls = [exchange.call for exchange in self.exchanges.values()]
        return tuple([(call.id, call.response_chunks) for call in calls if call.stream and call.engine == engine])

    def cancel_workflow(self, key_name: str, workflow_id: str) -> None:
        """The calls of this workflow that are under way end with an error."""
        fault = RequestFault(409, "workflow_cancelled", f"the workflow {workflow_id[:256]!r} was cancelled")
        for exchange in list(self.exchanges.values()):
            call = exchange.call
            if call.key_name == key_name and call.identity.workflow_id == workflow_id:
                exchange.cancel(fault)

    # --- the end ---

    def drain(self) -> None:
        """No new calls; running ones may finish."""
        self.server.stop_listening()
        self.tell(Draining())

    def close(self) -> None:
        """Stop everything at once."""
        self._sweep.cancel()
        if self._wake is not None:
            self._wake.cancel()
        self.server.close()
        for engine in self.engines.values():
            engine.pool.close()

    # --- inside ---

    def refuse_unadmitted(self, connection: Client, request: Request, call: Call, fault: RequestFault) -> None:
        """An error for a request that never became a call of the scheduler's."""
        keep_alive = request.keep_alive and not fault.close and not self.server.draining
        head_only = request.method == b"HEAD"
        self.finish_unscheduled(request, call, Outcome.REFUSED, fault.status, fault.reason)
        connection.write(error_answer(fault, self.error_headers(call), close=not keep_alive, head_only=head_only))
        connection.answered(keep_alive=keep_alive)

    def ask(self, event: Event, call_id: str) -> RequestFault | None:
        """`tell`, for a request that has no exchange: returns why it is refused."""
        now = monotonic()
        actions = self.scheduler.handle(event, now)
        if self.event_log is not None:
            self.event_log.write(event, now, actions)
        refusals = [action for action in actions if isinstance(action, Reject) and action.call_id == call_id]
        self._carry_out([action for action in actions if action not in refusals], now)
        return _fault_of(refusals[0]) if refusals else None

    def finish_unscheduled(
        self, request: Request, call: Call, outcome: Outcome, status: int, reason: str | None
    ) -> None:
        """Count a request that never became a call of the scheduler's."""
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
            try:
                self.metrics.finished(call)
                self.log.write(call)
            except Exception as error:  # noqa: BLE001  (reported; the other calls are counted)
                self.faults.report("counting a call", error, request_id=call.request_id)

    def _sweep_now(self) -> None:
        now = monotonic()
        try:
            for exchange in list(self.exchanges.values()):
                try:
                    exchange.check_time(now)
                except Exception as error:  # noqa: BLE001  (reported; the other calls' times must go on)
                    self.faults.report("a call's timeouts", error, request_id=exchange.call.request_id)
                    self._give_up(exchange)
            self.settle()
            self.log.flush()
        except Exception as error:  # noqa: BLE001  (reported)
            self.faults.report("the sweep", error)
        finally:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_now)


def _fault_of(refusal: Reject) -> RequestFault:
    status, reason, message, retry, param = refusal[1:]
    return RequestFault(status, reason, message, param=param, retry_after_seconds=retry)
