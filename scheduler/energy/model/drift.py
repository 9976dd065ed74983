"""Is the engine still the one that was learned? Page's test on standardised residuals."""

from __future__ import annotations

from typing import Any

SLACK = 1.0
"""Standard errors of a residual that are nobody's fault."""
ALARM = 8.0
"""Sum over the slack: three windows of 4 standard errors, or eight of 2, all to one side."""
CLIP = 4.0
"""One outlier alone raises no alarm."""
HIGHER, HIGHEST, LOWER = 2.0, 4.0, 1 / 400
"""Each alarm raises the bar for the next, up to four times: equations that do not fit would raise one after another,
and each of them forgets what was learned. The bar comes down again in some 400 windows."""


class DriftTest:
    """Two-sided cumulative sums (Page 1954) of several residuals, each standardised."""

    def __init__(self, residuals: int) -> None:
        self.sums = [0.0] * (2 * residuals)
        self.bar = 1.0

    @property
    def level(self) -> float:
        """0 = at rest, 1 = alarm."""
        return max(self.sums) / (ALARM * self.bar)

    def saw(self, *standardised: float) -> bool:
        """The residuals of one window: whether they raise the alarm, after which the test starts anew."""
        self.bar -= LOWER * (self.bar - 1.0)
        for place, value in enumerate(standardised):
            clipped = min(max(value, -CLIP), CLIP)
            for side, signed in ((0, clipped), (1, -clipped)):
                at = 2 * place + side
                self.sums[at] = max(0.0, self.sums[at] + signed - SLACK)
        if self.level < 1:
            return False
        self.sums = [0.0] * len(self.sums)
        self.bar = min(self.bar * HIGHER, HIGHEST)
        return True

    def export(self) -> dict[str, Any]:
        """Its state as JSON types."""
        return {"sums": list(self.sums), "bar": self.bar}

    @classmethod
    def restored(cls, data: dict[str, Any]) -> DriftTest:
        """From `export`. KeyError or ValueError if it is not that."""
        sums = [float(value) for value in data["sums"]]
        self = cls(len(sums) // 2)
        self.sums = sums
        self.bar = min(max(float(data["bar"]), 1.0), HIGHEST)
        return self
