"""How much company is to be expected? Rates of what arrives, with forgetting."""

from __future__ import annotations

from math import exp
from typing import NamedTuple

FORGET_SECONDS = 120.0
GAP_RATE = 0.1


class Newcomers(NamedTuple):
    """Workflows that are to be expected."""

    work_rate: float = 0.0
    """Seconds of work that arrive in each second."""
    square_rate: float = 0.0
    """Times a span of time, the variance of what newcomers compute within it (they come independently)."""
    waits_seconds: float = 0.0
    """How long they can wait."""


class Arrivals:
    """Workflows that come to one engine."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._work = self._squares = 0.0
        self.count = 0
        self.gap_seconds = float("inf")
        """Usual time from one to the next."""
        self.slack_seconds = 0.0
        """Usual slack of a newcomer with a deadline, alone on the engine."""
        self._last: float | None = None

    def came(self, marginal_seconds: float, prompt_seconds: float, slack_seconds: float, now: float) -> None:
        """A workflow with so much work, of it prompts, which could wait so long."""
        kept = exp((self._at - now) / FORGET_SECONDS)
        self._work = self._work * kept + marginal_seconds / FORGET_SECONDS
        # Prompts are in the way at once; of the rest, who comes at any moment of a span does a part: E[u²] = 1/3.
        tokens = max(0.0, marginal_seconds - prompt_seconds)
        square = prompt_seconds * (prompt_seconds + tokens) + tokens * tokens / 3.0
        self._squares = self._squares * kept + square / FORGET_SECONDS
        self._at = now
        if self._last is not None:
            gap = now - self._last
            self.gap_seconds = gap if self.count == 1 else self.gap_seconds + GAP_RATE * (gap - self.gap_seconds)
        if slack_seconds > 0.0:
            rate = GAP_RATE if self.slack_seconds else 1.0
            self.slack_seconds += rate * (slack_seconds - self.slack_seconds)
        self._last = now
        self.count += 1

    def newcomers(self, now: float) -> Newcomers:
        """What is to be expected from now on."""
        kept = exp((self._at - now) / FORGET_SECONDS)
        return Newcomers(self._work * kept, self._squares * kept, self.slack_seconds)

    def expected(self, seconds: float, now: float) -> float:
        """How many more come within so many seconds from now."""
        last = self._last
        if last is None:
            return 0.0
        return seconds / max(self.gap_seconds, 1e-3, 0.3 * (now - last) if self.count > 1 else 0.0)
