"""What does the cap controller see of a gateway, when does it decide, and what came of it? Owned by the scheduler."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.actions import WakeAt
from scheduler.energy.caps.claims import Savings
from scheduler.energy.caps.fleet import CapFleet
from scheduler.energy.caps.recent import Recent
from scheduler.energy.caps.slack import tightest
from scheduler.energy.caps.view import EngineView
from scheduler.events import CapResumed, CardsRead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scheduler.actions import Action
    from scheduler.energy.caps.decision import Decision
    from scheduler.energy.caps.rules import CapRules, EngineMode
    from scheduler.energy.caps.view import CostModel
    from scheduler.energy.desk import EnergyDesk
    from scheduler.energy.window import Counters, MeterSample, Window
    from scheduler.state import CallState, EngineState

HISTORY_MAX = 64
"""Decisions kept of each engine: those that say something else than the one before."""
PROPOSAL_SECONDS = 15.0
"""A policy that says no more leaves no slack of its own making."""


class _Proposal(NamedTuple):
    at: float
    stretch: float
    least_watts: float
    need_watts: float


class EngineSight:
    """What is known of one engine for its caps."""

    def __init__(self, rules: CapRules, gpus: int) -> None:
        self.recent = Recent(rules)
        self.savings = Savings(gpus)
        self.cards: CardsRead | None = None
        self.limits_at: float | None = None
        """When its cards' limits were last known to be what they are said to be."""
        self.limit_watts: float | None = None
        """Enforced, of all GPUs together."""
        self.probed_at: float | None = None
        self.waiting: float | None = None
        self.binding: bool | None = None
        """Whether the limit held the engine back in the last window with work; None: not known."""
        self.proposal: _Proposal | None = None
        self.history: deque[Decision] = deque(maxlen=HISTORY_MAX)
        self.decided = 0
        """Decisions ever put into `history`."""
        self.counts: dict[tuple[str, str], int] = {}
        """Decisions by (move, why)."""


class CapsDesk:
    """Calls, windows, meters and probes in, as the energy desk hears of them; decisions out, each `interval_seconds`.

    Times are seconds of the events' clock. Nothing is decided before an engine has both cards and a model.
    """

    def __init__(
        self, rules: CapRules, energy: EnergyDesk, calls: Mapping[str, CallState], engines: Mapping[str, EngineState]
    ) -> None:
        self.rules = rules
        self.fleet = CapFleet(rules)
        self.engines: dict[str, EngineSight] = {}
        self._energy = energy
        self._calls = calls
        self._table = engines
        self._modes: dict[str, EngineMode] = {}
        """Of engines that an experiment has given another mode than the rules'."""
        self._next_at: float | None = None
        self.hurried = False
        """It is to be decided now: a policy cannot wait."""
        self._stopped = False
        energy.listener = self
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            CardsRead: self._cards_read,
            CapResumed: self._resumed,
        }

    # --- what a policy says ---

    def acts_on(self, engine: str) -> bool:
        """Whether a cap of this engine is set by us: else what a policy says is for show."""
        sight = self.engines.get(engine)
        return (
            sight is not None and sight.cards is not None and sight.cards.may_set and self.mode_of(engine) == "actuate"
        )

    def propose(
        self, engine: str, stretch: float, now: float, least_watts: float = 0.0, need_watts: float = 0.0
    ) -> None:
        """The slack that the policy leaves for the cap: steps of this engine may take so many times as long as under
        the prior limit (≥ 1; 1.0: none). It holds until the next word, at most for PROPOSAL_SECONDS.

        It takes the place of `slack_use`: the policy knows what it uses itself. What was promised holds all the same.

        Watts of each GPU, where time in steps does not say all: the cap goes no lower than `least_watts`, and must be
        at least `need_watts` at once, without waiting for the next decision, or a deadline is lost.
        """
        if (sight := self.engines.get(engine)) is None:
            return
        sight.proposal = _Proposal(now, max(stretch, 1.0), least_watts, need_watts)
        controller = self.fleet.controllers.get(engine)
        current = None if controller is None else controller.standing.current_watts
        if current is not None and need_watts > current and self._next_at is not None and self.acts_on(engine):
            self._next_at = now
            self.hurried = True

    # --- what an experiment says ---

    def mode_of(self, engine: str) -> EngineMode:
        """What may be done with this engine's caps now."""
        return self._modes.get(engine, self.rules.mode)

    def set_mode(self, engine: str, mode: EngineMode, now: float, actions: list[Action]) -> None:
        """From now on. Caps that were set go back at once where the mode does not set any. `actuate` is of effect only
        where the rules' mode is that, too."""
        if mode == self.mode_of(engine):
            return
        if mode == self.rules.mode:
            del self._modes[engine]
        else:
            self._modes[engine] = mode
        if self._next_at is not None:
            self._next_at = now
            self.tick(now, actions)

    # --- what the energy desk hears ---

    def sent(self, engine: str, call_id: str, now: float, *, streamed: bool) -> None:
        """A call was given to the engine."""
        if (sight := self.engines.get(engine)) is not None:
            sight.recent.sent(call_id, now, streamed=streamed)

    def first_token(self, engine: str, call_id: str, now: float) -> None:
        """The first event of its answer."""
        sight = self.engines.get(engine)
        if sight is not None and sight.limit_watts is not None:
            sight.recent.first_token(call_id, now, sight.limit_watts)

    def finished(self, engine: str, call_id: str, output_tokens: int | None, now: float) -> None:
        """Its answer is complete."""
        if (sight := self.engines.get(engine)) is None:
            return
        if sight.limit_watts is None:
            sight.recent.gone(call_id)
        else:
            sight.recent.finished(call_id, output_tokens, now, sight.limit_watts)

    def gone(self, engine: str, call_id: str) -> None:
        """It left the engine without a whole answer."""
        if (sight := self.engines.get(engine)) is not None:
            sight.recent.gone(call_id)

    def sampled(self, engine: str, sample: MeterSample) -> None:
        """The engine's meter was read."""
        sight = self.engines.get(engine)
        if sight is not None and sample.state == "ok" and sample.limit_watts is not None:
            sight.limit_watts, sight.limits_at = sample.limit_watts, sample.at

    def counted(self, engine: str, counters: Counters) -> None:
        """The engine was probed."""
        if (sight := self.engines.get(engine)) is not None:
            sight.probed_at, sight.waiting = counters.at, counters.waiting

    def window(self, engine: str, window: Window) -> None:
        """A window has closed, and its model has learned from it."""
        sight, model = self.engines.get(engine), self._model(engine)
        if sight is None or model is None:
            return
        sight.recent.window(window)
        if window.whole and window.busy_seconds > 0:
            sight.binding = sight.savings.binds(window, model) if window.limit_watts is not None else None
        controller = self.fleet.controllers.get(engine)
        ours = controller is not None and controller.standing.ours
        sight.savings.saw(window, controller.standing.prior_watts if controller and ours else None, model)

    def as_limited(self, engine: str, sample: MeterSample) -> MeterSample:
        """A reading under a clock that we have locked: it stands for a limit of so many watts, and the model learns
        steps under that one, not under a limit that does not bind."""
        controller, sight = self.fleet.controllers.get(engine), self.engines.get(engine)
        if self.rules.actuator != "clock" or controller is None or sight is None or sight.cards is None:
            return sample
        standing, limit = controller.standing, sample.limit_watts
        watts = standing.current_watts
        if not standing.ours or watts is None or standing.prior_watts is None or watts >= standing.prior_watts:
            return sample
        watts *= sight.cards.gpus
        return sample._replace(limit_watts=watts if limit is None else min(limit, watts), throttled=True)

    # --- the scheduler's events ---

    def _cards_read(self, event: CardsRead, now: float, actions: list[Action]) -> None:
        sight = self.engines.get(event.engine)
        if sight is None or sight.cards is None or sight.cards.gpus != event.gpus:
            sight = self.engines[event.engine] = EngineSight(self.rules, event.gpus)
        sight.cards = event
        if event.limits is not None:
            sight.limits_at = event.at
            sight.limit_watts = event.gpus * event.limits.enforced
        if self._next_at is None and not self._stopped:
            self._next_at = now + self.rules.interval_seconds
            actions.append(WakeAt(self._next_at))

    def _resumed(self, event: CapResumed, now: float, actions: list[Action]) -> None:
        """An operator's word; an experiment that runs says its mode again at its next tick."""
        self._modes.pop(event.engine, None)
        self.fleet.resume(event.engine)

    def stop(self) -> None:
        """The process goes down and puts limits back: no further decisions."""
        self._stopped = True
        self._next_at = None

    def hurry(self, now: float, actions: list[Action]) -> None:
        """After each event: decide at once where a policy cannot wait."""
        if self.hurried:
            self.tick(now, actions)

    def tick(self, now: float, actions: list[Action]) -> None:
        """Decide if it is time, and ask to be woken for the next time. Asks for nothing where no engine has cards."""
        self.hurried = False
        if self._next_at is None:
            return
        if now >= self._next_at:
            actions.extend(decision.action for decision in self._decide(now) if decision.action is not None)
            self._next_at = now + self.rules.interval_seconds if self.engines else None
        if self._next_at is not None:
            actions.append(WakeAt(self._next_at))

    # --- deciding ---

    def _decide(self, now: float) -> list[Decision]:
        for name in [name for name in self.engines if name not in self._table or self._table[name].removed]:
            del self.engines[name]
        views, models = {}, {}
        slacks = tightest(self._calls, now)
        for name, sight in self.engines.items():
            model = self._model(name)
            if model is not None and sight.cards is not None:
                models[name] = model
                views[name] = self._view(name, sight, sight.cards, now)._replace(slack=slacks.get(name))
        decisions = self.fleet.decide(now, views, models)
        for decision in decisions:
            self._note(self.engines[decision.engine], decision)
        return decisions

    def _view(self, name: str, sight: EngineSight, cards: CardsRead, now: float) -> EngineView:
        recent, proposal = sight.recent, sight.proposal
        if proposal is not None and now > proposal.at + PROPOSAL_SECONDS:
            proposal = None
        known = (recent.last_window_end, sight.probed_at, sight.limits_at)
        ages = [now - at for at in known if at is not None]
        return EngineView(
            name,
            cards.gpus,
            cards.limits,
            recent.load(now),
            recent.ttft,
            recent.itl,
            sight.waiting,
            max(ages) if len(ages) == len(known) else None,
            settle_seconds=cards.settle_seconds,
            sm_clock_max_mhz=cards.sm_clock_max_mhz,
            limits_at=sight.limits_at,
            may_set=cards.may_set,
            mode=self._modes.get(name, "actuate"),
            stretch_allowed=None if proposal is None else proposal.stretch,
            least_watts=0.0 if proposal is None else proposal.least_watts,
            need_watts=0.0 if proposal is None else proposal.need_watts,
        )

    @staticmethod
    def _note(sight: EngineSight, decision: Decision) -> None:
        said = decision.move, decision.why
        sight.counts[said] = sight.counts.get(said, 0) + 1
        before = sight.history[-1] if sight.history else None
        new = decision.action is not None or before is None or decision.watts != before.watts
        if new or said != (before.move, before.why):  # type: ignore[union-attr]
            sight.history.append(decision)
            sight.decided += 1

    def _model(self, engine: str) -> CostModel | None:
        desk = self._energy.engines.get(engine)
        return None if desk is None else desk.model

    # --- looking ---

    def fresh(self, seen: dict[str, int]) -> list[Decision]:
        """What was decided since `seen` (decisions by engine, brought up to date), for a log; the oldest may miss."""
        found: list[Decision] = []
        for name, sight in self.engines.items():
            new = sight.decided - seen.get(name, 0)
            if new > 0:
                found.extend(list(sight.history)[-new:])
            seen[name] = sight.decided
        return found

    def describe(self, engine: str) -> dict[str, Any]:
        """Of one engine, JSON types, for GET /admin/caps. Watts of each GPU."""
        sight, controller = self.engines.get(engine), self.fleet.controllers.get(engine)
        if sight is None or sight.cards is None:
            return {"mode": self.mode_of(engine), "why": "its cards' limits are not known"}
        cards, standing = sight.cards, None if controller is None else controller.standing
        last = None if controller is None else controller.last
        return {
            "mode": self.mode_of(engine) if cards.may_set or self.mode_of(engine) == "off" else "observe",
            "actuator": self.rules.actuator,
            "gpus": cards.gpus,
            "limits_watts": None if cards.limits is None else cards.limits._asdict(),
            "state": {True: "binding", False: "not binding", None: "unknown"}[sight.binding],
            **({} if standing is None else standing.describe()),
            "why": "nothing is learned of this engine so far" if self._model(engine) is None else None,
            "decision": None if last is None else last.describe(),
            "decisions": [decision.describe() for decision in reversed(sight.history)],
            "claims": sight.savings.describe(),
            "policy_stretch": None if sight.proposal is None else sight.proposal.stretch,
            "policy_least_watts": None if sight.proposal is None else sight.proposal.least_watts or None,
        }

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        for name, sight in self.engines.items():
            sight.recent.ttft.validate()
            sight.recent.itl.validate()
            assert len(sight.history) <= min(sight.decided, HISTORY_MAX)
            controller = self.fleet.controllers.get(name)
            if controller is not None and self.rules.mode == "observe":
                assert not controller.standing.ours, f"{name}: moved in mode observe"
