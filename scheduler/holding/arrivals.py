"""How much company is to be expected? Rates of what arrives, with forgetting."""

from __future__ import annotations

from math import exp

FORGET_SECONDS = 120.0
GAP_RATE = 0.1


class Arrivals:
    """Workflows that come to one engine."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._work = 0.0
        self.count = 0
        self.gap_seconds = float("inf")
        """Usual time from one to the next."""
        self.slack_seconds = 0.0
        """Usual slack of a newcomer with a deadline, alone on the engine."""
        self._last: float | None = None

    def came(self, marginal_seconds: float, slack_seconds: float, now: float) -> None:
        """A workflow with so much work, which could wait so long."""
        self._work = self._work * exp((self._at - now) / FORGET_SECONDS) + marginal_seconds / FORGET_SECONDS
        self._at = now
        if self._last is not None:
            gap = now - self._last
            self.gap_seconds = gap if self.count == 1 else self.gap_seconds + GAP_RATE * (gap - self.gap_seconds)
        if slack_seconds > 0.0:
            rate = GAP_RATE if self.slack_seconds else 1.0
            self.slack_seconds += rate * (slack_seconds - self.slack_seconds)
        self._last = now
        self.count += 1

    def work_rate(self, now: float) -> float:
        """Marginal seconds of work that arrive in each second."""
        return self._work * exp((self._at - now) / FORGET_SECONDS)

    def expected(self, seconds: float, now: float) -> float:
        """How many more come within so many seconds from now."""
        last = self._last
        if last is None:
            return 0.0
        return seconds / max(self.gap_seconds, 1e-3, 0.3 * (now - last) if self.count > 1 else 0.0)
