"""Where is a number going that is looked at again and again?"""

from __future__ import annotations

LEVEL_RATE, TREND_RATE = 0.5, 0.03


class Trend:
    """Holt's linear method (double exponential smoothing; C. C. Holt, 1957): a level, and its growth a second.

    Time is what it is told; the rates are meant for looks about a second apart.
    """

    __slots__ = ("at", "level", "per_second")

    def __init__(self) -> None:
        self.at: float | None = None
        self.level = self.per_second = 0.0

    def saw(self, value: float, now: float) -> None:
        """The value at this time. A second one at the same time, or before, is left out."""
        if self.at is None:
            self.at, self.level = now, value
            return
        passed = now - self.at
        if passed <= 0.0:
            return
        before = self.level
        self.level += self.per_second * passed
        self.level += LEVEL_RATE * (value - self.level)
        self.per_second += TREND_RATE * ((self.level - before) / passed - self.per_second)
        self.at = now

    def ahead(self, seconds: float) -> float:
        """What it will be so many seconds after the last look; not less than nothing."""
        return max(0.0, self.level + self.per_second * seconds)
