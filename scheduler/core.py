"""The mind: events in, actions out. Pure and synchronous; the same object runs live and in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.actions import Abort, Action, Reject, WakeAt
from scheduler.breaker import BreakerRule
from scheduler.deciding import Deciding
from scheduler.decisions import ANSWERED, DecisionLog, judged
from scheduler.energy.caps.desk import CapsDesk
from scheduler.energy.caps.rules import CapRules
from scheduler.energy.desk import EnergyDesk, EnergyRules
from scheduler.energy.ledger import TokenLedger
from scheduler.energy_events import EnergyEvents
from scheduler.engines import EngineTable
from scheduler.events import (
    AnsweredHere,
    BreakersChanged,
    BudgetsRestored,
    CallArrived,
    CallFailed,
    CallFinished,
    CapApplied,
    ClientGone,
    Draining,
    EngineLoad,
    EnginesChanged,
    EngineStatus,
    FirstToken,
    LimitsChanged,
    PolicyChanged,
    QuotasChanged,
    Tick,
)
from scheduler.experiments.desk import ExperimentDesk
from scheduler.invariants import ATTEMPTS_MAX, validate
from scheduler.parking import Parking, ParkingRules
from scheduler.patience import Patience
from scheduler.policies.base import View
from scheduler.quotas import Quotas
from scheduler.state import CallState, ReadyCalls
from scheduler.workflow.book import WorkflowBook
from scheduler.workflow.spec import WorkflowLimits
from scheduler.workflow_events import WorkflowEvents

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.energy.budgets import JouleQuota
    from scheduler.events import EngineSpec, Event, KeyQuota
    from scheduler.policies.base import Policy


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Everything a scheduler starts from; written at the head of an event log."""

    engines: tuple[EngineSpec, ...]
    policy: str = "passthrough"
    policy_options: tuple[tuple[str, object], ...] = ()
    quotas: tuple[KeyQuota, ...] = ()
    queue_calls: int = 4096
    queue_seconds: float = 600.0
    workflows: int = 10_000
    breaker: BreakerRule = field(default_factory=BreakerRule)
    workflow_limits: WorkflowLimits = field(default_factory=WorkflowLimits)
    energy: EnergyRules = field(default_factory=EnergyRules)
    joule_quotas: tuple[JouleQuota, ...] = ()
    caps: CapRules = field(default_factory=CapRules)
    decisions: int = 4096
    """Calls whose decisions are remembered."""
    parking: ParkingRules = field(default_factory=ParkingRules)


class Scheduler:
    """One gateway's scheduler. `now` is in seconds of any clock that never goes back; each call uses the same one."""

    def __init__(self, config: SchedulerConfig, now: float) -> None:
        self.config = config
        self.queue_calls = config.queue_calls
        self.quotas = Quotas(config.quotas, now)
        self.ledger = TokenLedger(config.workflows)
        self._engine_table = EngineTable(config.engines, config.breaker)
        self.engines = self._engine_table.by_name
        self.calls: dict[str, CallState] = {}
        self.ready = ReadyCalls()
        self.patience = Patience(self.ready, config.queue_seconds)
        self._newly_ready: CallState | None = None
        self.workflows = WorkflowBook(config.workflow_limits)
        self.energy = EnergyDesk(config.energy, config.joule_quotas, now)
        self.caps = CapsDesk(config.caps, self.energy, self.calls, self.engines)
        self.decisions = DecisionLog(config.decisions)
        self.parking = Parking(config.parking, self.engines, self.ready, self.decisions, self._holds_for)
        self.parking.configure(config.engines, now, start=True)
        self.view = View(
            self.engines, self.calls, self.ready, self.workflows, self.energy, self.patience, self.caps,
            self.decisions, self.quotas, self.parking,
        )  # fmt: skip
        self.deciding = Deciding(self.view, config.policy, dict(config.policy_options), now)
        self.experiments = ExperimentDesk(self.deciding, self.energy, self.caps, self.engines)
        self.draining = False
        self._sequence = 0
        self._wake_at: float | None = None
        self._handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            CallArrived: self._call_arrived,
            AnsweredHere: self._answered_here,
            FirstToken: self._first_token,
            CallFinished: self._call_finished,
            CallFailed: self._call_failed,
            ClientGone: self._client_gone,
            EngineStatus: self._engine_table.status,
            EngineLoad: self._engine_table.load,
            EnginesChanged: self._engines_changed,
            QuotasChanged: self._quotas_changed,
            BudgetsRestored: self._budgets_restored,
            LimitsChanged: self._limits_changed,
            BreakersChanged: self._engine_table.breakers_changed,
            PolicyChanged: self._policy_changed,
            Draining: self._drain,
            Tick: self._tick,
            **WorkflowEvents(self.workflows, self.energy, self.calls).handlers,
            **EnergyEvents(self.energy, self.caps).handlers,
            **self.experiments.handlers,
            **self.parking.handlers,
            CapApplied: self._cap_applied,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; return what is to be done, in this order."""
        actions: list[Action] = []
        self._handlers[type(event)](event, now, actions)
        if self.ready.count:
            self._run_ready(now, actions)
        if self.parking.sleepers:
            self.parking.look(now, actions, experiment=bool(self.experiments.running))
        if self.workflows.untold:
            self.workflows.tell_on(now)
            if self.workflows.untold:
                actions.append(WakeAt(now))
        self.caps.hurry(now, actions)
        if self.deciding.news:
            actions += self.deciding.news
            self.deciding.news = []
            self.experiments.policy_failed(now, actions)
        return actions

    @property
    def policy(self) -> Policy:
        """The one that decides now."""
        return self.deciding.policy

    # --- a call's life ---

    def _call_arrived(self, event: CallArrived, now: float, actions: list[Action]) -> None:
        call_id = event.call_id
        if call_id in self.calls:
            raise ValueError(f"call {call_id!r} arrived twice")
        if (refusal := self._refusal(call_id, event.model)) is not None:
            actions.append(refusal)
            if refusal.reason == "queue_full" and self.experiments.running:  # by a policy that holds too much
                self.experiments.refused(CallState(event, now, self._sequence), now)
            return
        tokens = 0
        if (use := self.quotas.by_key.get(event.key)) is not None:
            tokens = event.prompt_tokens_estimate + (event.max_output_tokens or 0)
            if (refused := use.admit(tokens, now)) is not None:
                actions.append(Reject(call_id, 429, *refused))
                return
        if (refused := self.energy.admit(event, now)) is not None:
            if use is not None:
                use.settle(tokens, 0)
            actions.append(Reject(call_id, 429, *refused))
            return
        self._sequence += 1
        call = CallState(event, now, self._sequence, reserved_tokens=tokens)
        self.calls[call_id] = call
        self.ready.add(call)
        self._newly_ready = call
        if event.workflow_id or event.watched:
            call.node = self.workflows.call_arrived(event, now)
        self.experiments.arrived(call, now)
        self.deciding.arrived(call, now)

    def _answered_here(self, event: AnsweredHere, now: float, actions: list[Action]) -> None:
        if (refusal := self._refusal(event.call_id, None)) is not None:
            actions.append(refusal)
        elif (use := self.quotas.by_key.get(event.key)) is not None:
            if (refused := use.admit(0, now)) is not None:
                actions.append(Reject(event.call_id, 429, *refused))
            else:
                use.settle(0, 0)

    def _refusal(self, call_id: str, model: str | None) -> Reject | None:
        """Why no call of this kind can be taken now, whoever sends it."""
        if self.draining:
            return Reject(call_id, 503, "draining", "the gateway is shutting down; try another instance", 1.0)
        if (refusal := self._engine_table.refusal(call_id, model)) is not None:
            return refusal
        if self.ready.count >= self.queue_calls:
            message = f"{self.ready.count} calls are waiting already (limits.queue_calls); try again later"
            return Reject(call_id, 503, "queue_full", message, 1.0)
        return None

    def _first_token(self, event: FirstToken, now: float, actions: list[Action]) -> None:
        call = self.calls.get(event.call_id)
        if call is not None and call.engine is not None:
            call.answering = True
            self.engines[call.engine].breaker.succeeded()
            self.energy.first_token(event.call_id, call.engine, now)

    def _call_finished(self, event: CallFinished, now: float, actions: list[Action]) -> None:
        call = self.calls.get(event.call_id)
        if call is None or call.engine is None:
            return
        arrived, engine = call.arrived, call.engine
        self.engines[engine].breaker.succeeded()
        self.ledger.book(engine, arrived.key, arrived.workflow_id, event, now)
        self.energy.finished(event, engine, now)
        if call.node is not None:
            self.workflows.call_finished(event, now)
        if self.experiments.running:
            bad = f"engine_{event.status}" if event.status >= 400 else "engine_error" if event.has_error else None
            self.experiments.over(event.call_id, now, bad or ANSWERED, event.prompt_tokens, event.output_tokens)
        prompt, output = event.prompt_tokens, event.output_tokens
        joules: float | None = None
        if judged(call.held, call.sent) is not None and (guess := self.energy.bill.preliminary(event.call_id)):
            joules = guess.joules
        self.decisions.ended(call, now, ANSWERED, prompt, output, joules)
        used = _tokens_at_least(call, event.output_tokens_seen) if prompt is None else prompt + (output or 0)
        self._forget(call, used, now, ANSWERED)

    def _call_failed(self, event: CallFailed, now: float, actions: list[Action]) -> None:
        call = self.calls.get(event.call_id)
        if call is None:
            return
        if call.engine is None:  # held, for its first time or after a retry: its time is up
            if not event.retryable:
                self._forget(call, 0, now, event.reason)
            return
        engine = self.engines[call.engine]
        if event.engine_fault:
            engine.breaker.failed(now)
        else:
            engine.breaker.trial_ended()
        if not event.retryable or call.answering:
            self._forget(call, _tokens_at_least(call, event.output_tokens_seen), now, event.reason)
            return
        if call.attempts >= ATTEMPTS_MAX:
            message = f"the engine could not be reached or closed the connection ({event.reason}), twice"
            actions.append(Reject(event.call_id, 502, event.reason, message, 1.0))
            self._forget(call, 0, now, event.reason)
            return
        self.deciding.ended(call, now)
        self._leave_engine(call)
        self.energy.left(event.call_id, engine.name, now)
        if call.node is not None:
            self.workflows.retried(event.call_id, now)
        call.avoid = engine.name
        self.ready.add(call, front=True)
        self._newly_ready = call
        self.deciding.arrived(call, now)

    def _client_gone(self, event: ClientGone, now: float, actions: list[Action]) -> None:
        call = self.calls.get(event.call_id)
        if call is None:
            return
        if call.engine is not None:
            self.engines[call.engine].breaker.trial_ended()
            actions.append(Abort(event.call_id, call.engine))
        if call.node is not None:
            self.workflows.client_gone(event.call_id, now)
        used = _tokens_at_least(call, event.output_tokens_seen) if call.answering else 0
        self._forget(call, used, now, "client_gone")

    # --- engines and configuration ---

    def _holds_for(self, engine: str, now: float) -> bool:
        return self.deciding.holds_for(engine, now)

    def _engines_changed(self, event: EnginesChanged, now: float, actions: list[Action]) -> None:
        self._engine_table.changed(event, now, actions)
        self.parking.configure(event.engines, now)

    def _quotas_changed(self, event: QuotasChanged, now: float, actions: list[Action]) -> None:
        self.quotas.change(event.quotas, now)
        for call in self.calls.values():  # a key may have got its first quota while calls of it are under way
            if (use := self.quotas.by_key.get(call.arrived.key)) is not None:
                use.running += 1

    def _budgets_restored(self, event: BudgetsRestored, now: float, actions: list[Action]) -> None:
        self.quotas.restore(event.budgets, now)

    def _limits_changed(self, event: LimitsChanged, now: float, actions: list[Action]) -> None:
        self.queue_calls = event.queue_calls
        self.patience.change(event.queue_seconds)
        self.ledger.max_workflows = event.workflows
        self.ledger.shrink()

    def _policy_changed(self, event: PolicyChanged, now: float, actions: list[Action]) -> None:
        self.deciding.change(event.name, dict(event.options), now)

    def _cap_applied(self, event: CapApplied, now: float, actions: list[Action]) -> None:
        self.caps.fleet.applied(event)
        self.experiments.cap_applied(event, now)

    def _drain(self, event: Draining, now: float, actions: list[Action]) -> None:
        self.draining = True
        self.caps.stop()
        self.parking.stop()
        self.experiments.drain()
        for call in list(self.ready):
            self._reject_held(call, 503, "draining", "the gateway is shutting down; try another instance", now, actions)

    def _tick(self, event: Tick, now: float, actions: list[Action]) -> None:
        self.workflows.expire(now)
        self.energy.timed(now)
        self._wake_at = None  # even if it comes early: what is still to be waited for is asked for anew
        self.caps.tick(now, actions)
        self.parking.ticked()

    # --- the shared steps ---

    def _run_ready(self, now: float, actions: list[Action]) -> None:
        """Send what the policy chooses; refuse what cannot run any more."""
        again_at = self.deciding.release(now, actions)
        newly, self._newly_ready = self._newly_ready, None
        if newly is not None and newly.engine is None:  # not sent at once, as most are
            self.patience.watch(newly)
        if self.ready.count:
            self._refuse_hopeless(now, actions)
        if self.ready.count:
            wake_at = min(self.patience.next_at(), float("inf") if again_at is None else again_at)
            if self._wake_at is None or wake_at < self._wake_at:
                self._wake_at = wake_at
                actions.append(WakeAt(wake_at))
        else:
            self.patience.forget()

    def _refuse_hopeless(self, now: float, actions: list[Action]) -> None:
        """Held calls whose model no engine serves any more, whose engines are all down, or whose time is up."""
        for model, group in list(self.ready.by_model.items()):
            fit = [engine for engine in self.engines.values() if not engine.removed and engine.serves(model)]
            if all(engine.lost for engine in fit):
                for call in list(group.values()):
                    refusal = self._engine_table.no_engine(call.arrived.call_id, model)
                    actions.append(refusal)
                    self._forget(call, 0, now, refusal.reason)
        for call in self.patience.over(now):
            message = f"the call waited {now - call.arrived_at:.0f} s for its turn (timeouts.queue_seconds)"
            self._reject_held(call, 503, "queue_timeout", message, now, actions)

    def _reject_held(
        self, call: CallState, status: int, reason: str, message: str, now: float, actions: list[Action]
    ) -> None:
        actions.append(Reject(call.arrived.call_id, status, reason, message, 1.0))
        self._forget(call, 0, now, reason)

    def _leave_engine(self, call: CallState) -> None:
        assert call.engine is not None
        self._engine_table.left(call.engine)
        call.engine = None

    def _forget(self, call: CallState, used_tokens: int, now: float, reason: str = "failed") -> None:
        """The call is over, wherever it stands: free its place and settle its key's account. `reason`: why it has no
        answer, if it has none."""
        call_id = call.arrived.call_id
        self.deciding.ended(call, now)
        self.energy.stopped(call.arrived, call.engine, used_tokens, now)  # of no effect on one that finished
        if call.node is not None:
            self.workflows.call_failed(call_id, now, reason)  # of no effect on one that finished
        if reason != ANSWERED:
            self.decisions.ended(call, now, reason)
            self.experiments.over(call_id, now, reason)
        if call.engine is not None:
            self._leave_engine(call)
        else:
            self.ready.remove(call)
        del self.calls[call_id]
        if (use := self.quotas.by_key.get(call.arrived.key)) is not None:
            use.settle(call.reserved_tokens, used_tokens)

    def validate(self, touched_since: float = float("-inf")) -> None:
        """Check every invariant; those of a workflow's graph if something was heard of it since then. AssertionError
        names the one that does not hold."""
        validate(self, touched_since)


def _tokens_at_least(call: CallState, output_tokens_seen: int) -> int:
    """What a call is charged whose engine reported no tokens: its reservation, or what was seen if that is more."""
    return max(call.reserved_tokens, call.arrived.prompt_tokens_estimate + output_tokens_seen)
