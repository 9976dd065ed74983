"""Is the engine still the one that was learned? Page's test on standardised residuals."""

from __future__ import annotations

from typing import Any

SLACK = 1.0
"""Standard errors of a residual that are nobody's fault."""
ALARM = 8.0
"""Sum over the slack: three windows of 4 standard errors, or eight of 2, all to one side."""
CLIP = 4.0
"""One outlier alone raises no alarm."""


class DriftTest:
    """Two-sided cumulative sums (Page 1954) of several residuals, each standardised."""

    def __init__(self, residuals: int) -> None:
        self.sums = [0.0] * (2 * residuals)

    @property
    def level(self) -> float:
        """0 = at rest, 1 = alarm."""
        return max(self.sums) / ALARM

    def saw(self, *standardised: float) -> bool:
        """The residuals of one window: whether they raise the alarm, after which the test starts anew."""
        for place, value in enumerate(standardised):
            clipped = min(max(value, -CLIP), CLIP)
            for side, signed in ((0, clipped), (1, -clipped)):
                at = 2 * place + side
                self.sums[at] = max(0.0, self.sums[at] + signed - SLACK)
        if self.level < 1:
            return False
        self.sums = [0.0] * len(self.sums)
        return True

    def export(self) -> dict[str, Any]:
        """Its state as JSON types."""
        return {"sums": list(self.sums)}

    @classmethod
    def restored(cls, data: dict[str, Any]) -> DriftTest:
        """From `export`. KeyError or ValueError if it is not that."""
        sums = [float(value) for value in data["sums"]]
        self = cls(len(sums) // 2)
        self.sums = sums
        return self
