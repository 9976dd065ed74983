"""Which caps are there to choose from, and what does the load cost under each? Priced when asked for, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.caps.price import Offered, price, sure

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler.energy.caps.price import Price
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import CardLimits, CostModel, Load

RUNGS_A_STEP = 4
"""The longest step down is so many rungs: a finer ladder finds the best cap more closely."""


class Ladder:
    """Caps of one engine in watts of each GPU: from the prior limit down to the floor, in quarter steps."""

    def __init__(self, prior_watts: float, limits: CardLimits, rules: CapRules) -> None:
        self.prior_watts = prior_watts
        self.floor_watts = min(max(limits.lowest, rules.floor_share * limits.default), prior_watts)
        self.rung_watts = rules.step_share * limits.default / RUNGS_A_STEP
        self.rungs = int((prior_watts - self.floor_watts) / self.rung_watts + 1e-6)
        """Number of the lowest; 0 is the prior limit."""

    def watts(self, rung: int) -> float:
        """Of a rung; beyond the ends, of the end. The lowest may stand a little above the floor."""
        return self.prior_watts - self.rung_watts * min(max(rung, 0), self.rungs)

    def nearest(self, watts: float) -> int:
        """The rung nearest to this."""
        return min(max(round((self.prior_watts - watts) / self.rung_watts), 0), self.rungs)

    def at_least(self, watts: float) -> int:
        """The lowest rung that is not under this (the prior limit if none is)."""
        return min(max(int((self.prior_watts - watts) / self.rung_watts + 1e-6), 0), self.rungs)


class Prices:
    """Of one load on one ladder."""

    def __init__(self, model: CostModel, load: Load, ladder: Ladder, gpus: int, sequences_max: int) -> None:
        self._offered = Offered(model, load)
        self._ladder = ladder
        self._gpus = gpus
        self._sequences_max = sequences_max
        self._known: dict[int, Price] = {}
        self._sure: dict[int, Price] = {}

    def __getitem__(self, rung: int) -> Price:
        """Of the load under this rung's cap."""
        found = self._known.get(rung)
        if found is None:
            watts = self._ladder.watts(rung)
            near = min(self._known, key=lambda known: abs(known - rung), default=None)
            steps = 0.0 if near is None else self._known[near].steps
            found = price(self._offered, watts, self._gpus, self._sequences_max, steps=steps)
            self._known[rung] = found
        return found

    def sure(self, rung: int) -> Price:
        """The same with the model's intervals, for few rungs."""
        found = self._sure.get(rung)
        if found is None:
            found = self._sure[rung] = sure(self._offered, self[rung], self._gpus)
        return found

    def under(self, limit_watts: float, measure: Callable[[Price], float]) -> float:
        """A measure of the load under a limit of all GPUs together; between whole steps along a straight line, so that
        few caps are priced however far the cap has wandered."""
        rung = self._ladder.nearest(limit_watts / self._gpus)
        if rung in self._known:
            return measure(self._known[rung])
        above = rung - rung % RUNGS_A_STEP
        below = min(above + RUNGS_A_STEP, self._ladder.rungs)
        one, other = measure(self[above]), measure(self[below])
        return one + (other - one) * (rung - above) / max(below - above, 1)
