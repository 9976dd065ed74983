"""The power limit of the simulated cards: what was asked for, and what is in force while it settles."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.twin.calibration import CapLayer, Card

FELT_SHARE = 0.02
"""Closer than this to the demand, the average of it counts as the demand."""
SETTLED_SHARE = 0.003
"""Closer than this to what was asked for counts as there."""


class PowerLimit:
    """Watts of all cards together. A new limit comes into force exponentially, as a power controller's does."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self.requested_watts = card.limit_watts_default * card.gpus
        self._from_watts = self.requested_watts
        self._changed_at = float("-inf")

    def set(self, watts: float, now: float) -> None:
        """Ask for a limit on all cards together. ValueError (in watts of one card) outside the card's range."""
        card = self._card
        low, high = card.limit_watts_min * card.gpus, card.limit_watts_max * card.gpus
        if not low <= watts <= high:
            cards = card.gpus
            raise ValueError(f"limit_watts must be from {low / cards:g} to {high / cards:g} W, not {watts / cards:g}")
        self._from_watts = self.in_force_watts(now)
        self._changed_at = now
        self.requested_watts = watts

    def settling(self, now: float) -> bool:
        """Whether the limit in force still moves."""
        return abs(self.in_force_watts(now) - self.requested_watts) > SETTLED_SHARE * self.requested_watts

    def in_force_watts(self, now: float) -> float:
        """The limit that the card holds at this time."""
        gap = self._from_watts - self.requested_watts
        if not gap:
            return self.requested_watts
        gap *= exp(-(now - self._changed_at) / self._card.settle_seconds)
        if abs(gap) <= SETTLED_SHARE * self.requested_watts:
            return self.requested_watts
        return self.requested_watts + gap


class FeltDemand:
    """The moving average of the demand, on which the cards' limiter acts; None where it acts at once."""

    def __init__(self, cap: CapLayer, idle_watts: float, now: float) -> None:
        self._constant = cap.average_seconds
        self._idle_watts = self._watts = idle_watts
        self._at = now

    def ran(self, until: float, demand_watts: float) -> None:
        """Up to this time something of this demand ran. What is not told of was idle time, and comes before."""
        self._watts = self.watts_after(demand_watts, until - self._at)
        self._at = until

    def watts(self, now: float) -> float | None:
        """The average at the start of something that begins now."""
        if not self._constant:
            return None
        if now > self._at:
            self.ran(now, self._idle_watts)
        return self._watts

    def watts_after(self, demand_watts: float, seconds: float) -> float:
        """The average after so much longer at this demand."""
        if not self._constant:
            return demand_watts
        return demand_watts + (self._watts - demand_watts) * exp(-seconds / self._constant)

    def settles(self, demand_watts: float) -> bool:
        """Whether it still rises while this demand goes on: from above, all of a limit is felt already."""
        return bool(self._constant) and self._watts < (1 - FELT_SHARE) * demand_watts
