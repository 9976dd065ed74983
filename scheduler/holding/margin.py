"""How much earlier than predicted must work begin so that only so many deadlines are missed? Learned from what came."""

from __future__ import annotations

MARGIN_LEAST, MARGIN_FIRST, MARGIN_MOST = 0.03, 0.15, 4.0
MISSES_KEPT = 0.5
"""The margin aims at this part of the misses that are allowed: it can only follow them."""


class Margin:
    """A share of the predicted time. Follows the quantile of lateness by small steps (Robbins and Monro, 1951): a miss
    raises it by `up`, a deadline that was kept lowers it by so much less that both balance at the asked-for share."""

    def __init__(self, misses_share: float, first: float, least: float, most: float, up: float = 0.03) -> None:
        self.learned = first
        self.reserve = 0.0
        """What else is kept: under a power limit things go wrong by more."""
        self.least, self.most = least, most
        self._up = up
        self._down = up * misses_share / (1.0 - misses_share)

    @property
    def value(self) -> float:
        """As it is to be used."""
        return self.learned + self.reserve

    def kept(self) -> None:
        """A workflow that was held ended in time."""
        self.learned = max(self.least, self.learned - self._down * (1.0 + 4.0 * self.learned))

    def missed(self) -> None:
        """It did not."""
        self.learned = min(self.most, self.learned + self._up * (1.0 + 4.0 * self.learned))


def margin_for(misses_share: float) -> Margin:
    """Where so many of the deadlines may be missed for holding."""
    return Margin(MISSES_KEPT * misses_share, MARGIN_FIRST, MARGIN_LEAST, MARGIN_MOST)
