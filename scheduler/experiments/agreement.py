"""How often would the other policy have decided the same, and what would it have changed? Sums over calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.experiments.shadow import Comparison


class Agreement(NamedTuple):
    """Of calls that both policies have sent. Differences: the shadow's less the control's."""

    decisions: int = 0
    same: int = 0
    """All three of…"""
    same_time: int = 0
    same_engine: int = 0
    same_priority: int = 0
    later_seconds: float = 0.0
    """By how much the shadow would have sent them later, summed."""
    seconds: float = 0.0
    """Predicted, to their answers."""
    joules: float = 0.0
    """By the energy model…"""
    joules_of_control: float = 0.0
    """…and what it says of the control's own decisions,…"""
    predicted: int = 0
    """…of so many calls."""

    def plus(self, one: Comparison) -> Agreement:
        """One more call."""
        known = one.joules is not None
        return Agreement(
            self.decisions + 1,
            self.same + (one.same_time and one.same_engine and one.same_priority),
            self.same_time + one.same_time,
            self.same_engine + one.same_engine,
            self.same_priority + one.same_priority,
            self.later_seconds + one.later_seconds,
            self.seconds + one.seconds,
            self.joules + (one.joules or 0.0),
            self.joules_of_control + (one.joules_of_control or 0.0),
            self.predicted + known,
        )
