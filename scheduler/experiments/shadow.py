"""What would the other policy have done? It decides in a world of its own, in which calls come as they really come and
take as long as they really take; nothing of what it says is carried out.

Its calls are ghosts: held and sent by its own choices. One that it sends later than the real one was sent ends as much
later, also when the real one is long over. What is not simulated: that a call which waits for another's answer would
come later, and that a call beside more others takes longer (that is in the predicted seconds).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.experiments.apart import Apart
from scheduler.holding.capslack import Slower
from scheduler.holding.costs import costs_of
from scheduler.holding.work import work_of_call
from scheduler.policies.base import Choice, Policy, View
from scheduler.state import CallState
from scheduler.workflow.durations import LearnedDurations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scheduler.state import EngineState, ReadyCalls

SAME_SECONDS = 0.05
"""Sent within this of each other: at the same time."""
GHOSTS_MAX = 20_000
"""Of more, the oldest are let go and not compared (`forgotten`)."""
LOOKS_MAX = 10_000
"""Decisions that are asked for between two real events."""
SOONEST_SECONDS = 0.001
UNSEEN = (0.0, 1e-4, 0.02)
"""Seconds a call, a prompt token, an output token, where nothing was learned."""


class Comparison(NamedTuple):
    """One call, decided by both. Differences: the shadow's less the control's."""

    same_time: bool
    same_engine: bool
    same_priority: bool
    later_seconds: float
    joules: float | None
    """By the energy model: of its own steps, which it shares with as many as run beside it. None: not modelled."""
    joules_of_control: float | None
    seconds: float
    """To its answer, the later sending included."""


class _Sent(NamedTuple):
    at: float
    engine: str
    priority: int | None
    company: int
    """Calls at the engine, this one among them."""


class Ghost:
    """A call in the shadow's world."""

    __slots__ = ("call", "ended_at", "real", "sent")

    def __init__(self, call: CallState) -> None:
        self.call = call
        self.real: _Sent | None = None
        self.sent: _Sent | None = None
        self.ended_at: float | None = None
        """When the real one did."""


class Shadow:
    """The other policy and its world. `say` is told of each call that both have sent."""

    def __init__(self, policy: Policy, say: Callable[[Comparison, float], None]) -> None:
        self.policy = policy
        self._say = say
        self.ghosts: dict[str, Ghost] = {}
        self.forgotten = 0
        self._ends: list[tuple[float, int, Ghost]] = []
        """Of ghosts that run and whose real calls are over."""
        self._gone: CallState | None = None
        """The last that was dropped."""
        self._pushed = 0
        self._again: float | None = None
        self._now = float("-inf")
        self._apart: Apart

    def begin(self, view: View, now: float) -> None:
        """Before the control begins, which may set things that the shadow must find as they were."""
        self._apart = Apart(view)
        self._energy, self._learned = view.energy, view.workflows.forecasts.durations
        self._now = now
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            ghost = self._ghost(call)
            if call.engine is not None:
                ghost.call.engine = call.engine
                if (mine := self._apart.engines.get(call.engine)) is not None:
                    mine.in_flight += 1
            else:
                self._apart.ready.add(ghost.call)
        self.policy.begin(self._apart.view, now)

    def _ghost(self, real: CallState) -> Ghost:
        call = self._gone
        if call is None or call.arrived is not real.arrived:  # else it is tried again, and policies know it
            call = CallState(real.arrived, real.arrived_at, real.sequence)
        call.engine, call.attempts, call.avoid, call.node = None, real.attempts, real.avoid, real.node
        ghost = self.ghosts[real.arrived.call_id] = Ghost(call)
        self._apart.calls[real.arrived.call_id] = call
        return ghost

    # --- what really happens ---

    def arrived(self, call: CallState, now: float) -> None:
        """A call is held; again, where an attempt has failed."""
        self.look(now)
        if call.arrived.call_id in self.ghosts:  # the attempt before is still there
            self._drop(call.arrived.call_id, now)
        while len(self.ghosts) >= GHOSTS_MAX:
            self.forgotten += 1
            self._drop(next(iter(self.ghosts)), now)
        ghost = self._ghost(call)
        self._apart.ready.add(ghost.call, front=call.attempts > 0)
        self.policy.arrived(ghost.call, now)
        self._decide(now)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """The control's choice was carried out."""
        ghost = self.ghosts.get(call.arrived.call_id)
        if ghost is not None:
            priority = None if call.sent is None else call.sent.priority
            ghost.real = _Sent(now, engine.name, priority, engine.in_flight)
            self._compare(ghost, now)

    def ended(self, call: CallState, now: float) -> None:
        """It is over, or its attempt has failed."""
        self.look(now)
        ghost = self.ghosts.get(call.arrived.call_id)
        if ghost is None or ghost.ended_at is not None:
            return
        ghost.ended_at = now
        if ghost.real is None:  # the control never sent it, or before the shadow looked on
            self._drop(call.arrived.call_id, now)
        elif ghost.sent is not None:
            self._end_later(ghost, ghost.sent, ghost.real, now)
            self.look(now)
        self._decide(now)

    # --- its own time ---

    def look(self, now: float) -> None:
        """Let the shadow's world come up to now: calls end, and it looks again when it wanted to."""
        self._apart.follow()
        for _ in range(LOOKS_MAX):
            end = self._ends[0][0] if self._ends else None
            times = [at for at in (end, self._again) if at is not None and at <= now]
            if not times:
                break
            at = max(min(times), self._now)
            self._again = None if self._again is not None and self._again <= at else self._again
            while self._ends and self._ends[0][0] <= at:
                ghost = heappop(self._ends)[2]
                if self.ghosts.get(call_id := ghost.call.arrived.call_id) is ghost:
                    self._drop(call_id, at)
            self._decide(at)
        self._now = max(self._now, now)

    def _decide(self, now: float) -> None:
        apart = self._apart
        self._now = max(self._now, now)
        while apart.ready.count:
            choice = self.policy.next(apart.ready, list(apart.engines.values()), now)
            if choice is None:
                return
            if type(choice) is not Choice:
                again = max(now + SOONEST_SECONDS, float(choice))  # type: ignore[arg-type]
                self._again = again if self._again is None else min(self._again, again)
                return
            call, engine, priority, _ = choice
            if not (apart.ready.holds(call) and engine.has_room(now) and apart.engines.get(engine.name) is engine):
                raise RuntimeError(f"impossible choice: {call.arrived.call_id!r} to {engine.name!r}")
            apart.ready.remove(call)
            call.engine = engine.name
            call.attempts += 1
            engine.in_flight += 1
            ghost = self.ghosts[call.arrived.call_id]
            ghost.sent = _Sent(now, engine.name, priority, engine.in_flight)
            self.policy.sent(call, engine, now)
            if ghost.real is not None and ghost.ended_at is not None:
                self._end_later(ghost, ghost.sent, ghost.real, ghost.ended_at)
            self._compare(ghost, now)

    def _end_later(self, ghost: Ghost, sent: _Sent, real: _Sent, ended_at: float) -> None:
        at = max(ended_at + (sent.at - real.at), self._now)
        self._pushed += 1
        heappush(self._ends, (at, self._pushed, ghost))

    def _drop(self, call_id: str, now: float) -> None:
        ghost = self.ghosts.pop(call_id, None)
        if ghost is None:
            return
        call, apart = ghost.call, self._apart
        self.policy.ended(call, now)
        if call.engine is None:
            apart.ready.remove(call)
        elif (engine := apart.engines.get(call.engine)) is not None:
            engine.in_flight -= 1
        del apart.calls[call_id]
        self._gone = call

    # --- both decisions of a call ---

    def _compare(self, ghost: Ghost, now: float) -> None:
        mine, real = ghost.sent, ghost.real
        if mine is None or real is None:
            return
        later = mine.at - real.at
        desk = self._energy.engines.get(real.engine)
        learned = self._learned
        unseen = learned.coefficients() if isinstance(learned, LearnedDurations) else UNSEEN
        costs = costs_of(desk, unseen, Slower())
        work = work_of_call(ghost.call, self._apart.view.workflows.forecasts, costs)
        seconds = later + work.steps * work.token_seconds * (mine.company - real.company)
        joules = control = None
        if costs.step_joules is not None:
            control = work.steps * (costs.token_joules + costs.step_joules / max(real.company, 1))
            joules = work.steps * costs.step_joules * (1.0 / max(mine.company, 1) - 1.0 / max(real.company, 1))
        same = abs(later) <= SAME_SECONDS, mine.engine == real.engine, mine.priority == real.priority
        self._say(Comparison(*same, later, joules, control, seconds), now)

    def validate(self) -> None:
        """AssertionError for what does not hold."""
        apart = self._apart
        assert len(self.ghosts) <= GHOSTS_MAX
        assert self.ghosts.keys() == apart.calls.keys()
        assert apart.ready.count == sum(call.engine is None for call in apart.calls.values())
        for name, engine in apart.engines.items():
            assert engine.in_flight == sum(call.engine == name for call in apart.calls.values())


class Shadowed(Policy):
    """The control's policy, and behind its back the shadow's. What that raises is its end, and of no other effect."""

    name = "experiment"

    def __init__(self, control: Policy, shadow: Shadow, dropped: Callable[[str], None]) -> None:
        self.policy = control
        self.uses_workflows = control.uses_workflows or shadow.policy.uses_workflows  # type: ignore[misc]
        self.shadow: Shadow | None = shadow
        self._dropped = dropped

    def _beside(self, hook: str, *what: Any) -> None:
        if self.shadow is not None:
            try:
                getattr(self.shadow, hook)(*what)
            except Exception as error:  # noqa: BLE001  (said; it never decided anything)
                self.shadow = None
                self._dropped(f"{hook}: {type(error).__name__}: {error}"[:512])

    def begin(self, view: View, now: float) -> None:
        """The shadow first: it must find what the control will change."""
        self._beside("begin", view, now)
        self.policy.begin(view, now)

    def end(self, now: float) -> None:
        """The shadow has changed nothing."""
        self.policy.end(now)

    def validate(self) -> None:
        """Of both."""
        self.policy.validate()
        if self.shadow is not None:
            self.shadow.validate()

    def arrived(self, call: CallState, now: float) -> None:
        """To both."""
        self.policy.arrived(call, now)
        self._beside("arrived", call, now)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """To both."""
        self.policy.sent(call, engine, now)
        self._beside("sent", call, engine, now)

    def ended(self, call: CallState, now: float) -> None:
        """To both."""
        self.policy.ended(call, now)
        self._beside("ended", call, now)

    def look(self, now: float) -> None:
        """Time has passed."""
        self._beside("look", now)

    def said_by(self, call: CallState) -> str:
        """The control's word."""
        return self.policy.said_by(call)

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The control's."""
        return self.policy.next(ready, engines, now)
