"""How do two policies share a pool while workflows of both arms are under way? Each decides for its own calls alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.experiments.among import Among
from scheduler.policies.base import Choice, Policy, View
from scheduler.state import ReadyCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scheduler.state import CallState, EngineState


class ArmPolicies(Policy):
    """One policy an arm; `arm_of` says whose a call is when it arrives, `first` whose turn it is.

    The current block's policy is asked first. Each is told of its own calls and sees no others, but engines as they
    are: what the other arm's calls do to them is the carry-over that the wash-out is for. With `sides`
    (split_and_swap) an arm only sees its own engines. When the experiment is over or stopped, the control's policy
    takes this one's place."""

    name = "experiment"

    def __init__(
        self,
        policies: tuple[Policy, ...],
        arm_of: Callable[[CallState, float], int],
        first: Callable[[float], int],
        sides: Callable[[int, float], frozenset[str] | None] | None = None,
    ) -> None:
        self.policies = policies
        self.uses_workflows = any(policy.uses_workflows for policy in policies)  # type: ignore[misc]
        self._arm_of = arm_of
        self._first = first
        self._sides = sides
        self._arm: dict[str, int] = {}
        self.ready = [ReadyCalls() for _ in policies]
        self._calls: list[dict[str, CallState]] = [{} for _ in policies]
        self._now = 0.0

    def begin(self, view: View, now: float) -> None:
        """Deal out what is held and what runs."""
        self._now = now
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            arm = self._deal(call, now)
            if call.engine is None:
                self.ready[arm].add(call)
        for arm, policy in enumerate(self.policies):
            mine = view._replace(calls=self._calls[arm], ready=self.ready[arm])
            policy.begin(mine if self._sides is None else mine._replace(engines=self._side(arm, view)), now)

    def _side(self, arm: int, view: View) -> Among:
        """The arm's engines at the time of the last event."""

        def holds(name: str) -> bool:
            names = None if self._sides is None else self._sides(arm, self._now)
            return names is None or name in names

        return Among(view.engines, holds)

    def _deal(self, call: CallState, now: float) -> int:
        call_id = call.arrived.call_id
        arm = self._arm[call_id] = self._arm_of(call, now)
        self._calls[arm][call_id] = call
        return arm

    def end(self, now: float) -> None:
        """To all, the last to begin first: what each changed outside is as it was."""
        for policy in reversed(self.policies):
            policy.end(now)

    def validate(self) -> None:
        """Of each."""
        for policy in self.policies:
            policy.validate()

    def arrived(self, call: CallState, now: float) -> None:
        """To its arm."""
        self._now = now
        arm = self._deal(call, now)
        self.ready[arm].add(call, front=call.attempts > 0)
        self.policies[arm].arrived(call, now)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """To its arm."""
        arm = self._arm[call.arrived.call_id]
        self.ready[arm].remove(call)
        self.policies[arm].sent(call, engine, now)

    def ended(self, call: CallState, now: float) -> None:
        """To its arm."""
        arm = self._arm.pop(call.arrived.call_id)
        self.policies[arm].ended(call, now)
        del self._calls[arm][call.arrived.call_id]
        if call.engine is None:
            self.ready[arm].remove(call)

    def said_by(self, call: CallState) -> str:
        """Its arm's."""
        return self.policies[self._arm[call.arrived.call_id]].name

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The first choice that an arm has; else the earliest time at which one wants to look again."""
        self._now = now
        first = self._first(now)
        again: float | None = None
        for arm in (first, *(arm for arm in range(len(self.policies)) if arm != first)):
            if not self.ready[arm].count:
                continue
            mine: Sequence[EngineState] = engines
            if self._sides is not None and (names := self._sides(arm, now)) is not None:
                mine = [engine for engine in engines if engine.name in names]
            choice = self.policies[arm].next(self.ready[arm], mine, now)
            if isinstance(choice, Choice):
                return choice
            if choice is not None:
                again = choice if again is None else min(again, choice)
        return again
