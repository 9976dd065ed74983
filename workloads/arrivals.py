"""When do workflows begin? Times of a pattern, from a seed; or users who take one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workloads.catalogue import WorkloadFault

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

PATTERNS = ("poisson", "bursty", "diurnal", "steady")
KINDS = ("closed", *PATTERNS, "trace")
LARGEST = 1e6


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`kind`: closed (`users` who pause `think_seconds`), poisson, bursty (gaps of a Gamma distribution with the
    coefficient of variation `cv`), diurnal (a Poisson process whose rate goes from `rate` down to `rate` ÷ `swing` and
    back in `period_seconds`), steady (equal gaps), or trace (the times of a trace, `speed` times as fast).

    `rate`: calls a second, of a diurnal day at its peak. `workflows` of closed arrivals: how many are played, so that
    every policy does the same work; None: four for each user."""

    kind: str = "poisson"
    rate: float = 4.0
    cv: float = 3.0
    swing: float = 4.0
    period_seconds: float = 600.0
    users: int = 16
    think_seconds: float = 0.0
    workflows: int | None = None
    speed: float = 1.0

    def check(self) -> None:
        """WorkloadFault that names the member."""
        if self.kind not in KINDS:
            raise WorkloadFault(("kind",), f"no {self.kind!r}; there are {', '.join(KINDS)}")
        for name in ("rate", "cv", "period_seconds", "speed"):
            _within(name, getattr(self, name), 0.0, above=True)
        _within("swing", self.swing, 1.0)
        _within("think_seconds", self.think_seconds, 0.0)
        for name, value in (("users", self.users), ("workflows", self.workflows)):
            if value is not None and not (type(value) is int and 1 <= value <= LARGEST):
                raise WorkloadFault((name,), f"must be a whole number from 1 to {LARGEST:,.0f}, not {value!r}")

    @property
    def count(self) -> int:
        """Workflows of closed arrivals."""
        return self.workflows if self.workflows is not None else 4 * self.users

    def times(self, rng: random.Random, seconds: float, workflows_per_second: float) -> Iterator[float]:
        """Seconds at which workflows begin, in order, for so long. Not for closed and traced ones."""
        mean = 1 / workflows_per_second
        at = 0.0
        while True:
            if self.kind == "steady":
                at += mean
            elif self.kind == "bursty":
                shape = 1 / self.cv**2
                at += rng.gammavariate(shape, mean / shape)
            else:
                at += rng.expovariate(workflows_per_second)
                # A diurnal process by thinning: of the peak's arrivals, those that the hour lets through.
                while self.kind == "diurnal" and rng.random() > self._share(at):
                    at += rng.expovariate(workflows_per_second)
            if at >= seconds:
                return
            yield at

    def _share(self, at: float) -> float:
        """Of the peak's rate, at this time; the peak is at the start."""
        low = 1 / self.swing
        return low + (1 - low) * (1 + math.cos(2 * math.pi * at / self.period_seconds)) / 2


def _within(name: str, value: Any, least: float, *, above: bool = False) -> None:
    fine = isinstance(value, int | float) and least <= value <= LARGEST and not (above and value == least)
    if not fine:
        raise WorkloadFault(
            (name,), f"must be a number {'above' if above else 'from'} {least:g} to {LARGEST:g}, not {value!r}"
        )
