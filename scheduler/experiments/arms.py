"""How do two policies share a pool while workflows of both arms are under way? Each decides for its own calls alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.policies.base import Choice, Policy
from scheduler.state import ReadyCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scheduler.state import CallState, EngineState


class ArmPolicies(Policy):
    """One policy an arm; `arm_of` says whose a held call is, `first` whose turn it is.

    The current block's policy is asked first. Both see the engines as they are: what the other arm's calls do to them
    is the carry-over that the wash-out is for. With `sides` (split_and_swap) an arm only sees its own engines.
    """

    name = "experiment"

    def __init__(
        self,
        policies: tuple[Policy, ...],
        arm_of: Callable[[CallState, float], int],
        first: Callable[[float], int],
        sides: Callable[[int, float], frozenset[str] | None] | None = None,
    ) -> None:
        self.policies = policies
        self._arm_of = arm_of
        self._first = first
        self._sides = sides

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The first choice that an arm has; else the earliest time at which one wants to look again."""
        of = [ReadyCalls() for _ in self.policies]
        for call in ready:
            of[self._arm_of(call, now)].add(call)
        first = self._first(now)
        again: float | None = None
        for arm in (first, *(arm for arm in range(len(self.policies)) if arm != first)):
            mine: Sequence[EngineState] = engines
            if self._sides is not None and (names := self._sides(arm, now)) is not None:
                mine = [engine for engine in engines if engine.name in names]
            if not of[arm].count:
                continue
            choice = self.policies[arm].next(of[arm], mine, now)
            if isinstance(choice, Choice):
                return choice
            if choice is not None:
                again = choice if again is None else min(again, choice)
        return again
