"""Is what was learned worth less than what was believed before? Then it is better to begin anew."""

from __future__ import annotations

from math import isnan
from typing import Any

RATE = 0.15
SUSPECT, LOST = 0.25, 0.6
"""Mean relative errors of joules, of the last seven windows or so, the busy time known. Over the first, if the prior
would have done better, or over the second whatever the prior does, it has gone astray: no scene of the bench comes so
far, not even one whose model is swapped."""
PATIENCE = 8
"""Windows in a row: those are what drift detection has to put it right."""
WORST = 2.0
"""An error counts as no more than this."""


class Astray:
    """Watches the errors of what was learned against those of the prior."""

    def __init__(self) -> None:
        self.own = 0.0
        self.prior = 0.0
        self.suspect = 0

    def needs_prior(self, error: float) -> bool:
        """The relative error of a busy window's joules, without sign. Whether `saw_prior` is to be told what the
        prior's would have been."""
        error = WORST if isnan(error) else min(error, WORST)  # not a number: as bad as can be
        self.own += RATE * (error - self.own)
        if self.own <= SUSPECT:
            self.suspect = 0
        return self.own > SUSPECT

    def saw_prior(self, error: float) -> bool:
        """The prior's error of the same window: whether to begin anew."""
        error = min(error, WORST)
        self.prior = error if not self.suspect else self.prior + RATE * (error - self.prior)
        self.suspect += 1
        return self.suspect >= PATIENCE and (self.prior < self.own or self.own > LOST)

    def export(self) -> dict[str, Any]:
        """Its state as JSON types."""
        return {"own": self.own, "prior": self.prior, "suspect": self.suspect}

    @classmethod
    def restored(cls, data: dict[str, Any]) -> Astray:
        """From `export`. KeyError or ValueError if it is not that."""
        self = cls()
        self.own, self.prior = (min(max(float(data[name]), 0.0), WORST) for name in ("own", "prior"))
        self.suspect = int(data["suspect"])
        return self
