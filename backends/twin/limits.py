"""The power limit of the simulated cards: what was asked for, and what is in force while it settles."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.twin.calibration import Card

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
