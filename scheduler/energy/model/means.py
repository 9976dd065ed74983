"""What does a window's work take and draw on average, for one who tries many step counts and limits? Plain floats.

The same equations as `equations.forward`, for one set of coefficients and without intervals: 5 µs in place of 100.
"""

from __future__ import annotations

from math import exp, expm1, log, log1p, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.model.equations import (
    AVERAGE,
    DECODE_EXPONENT,
    DRAW,
    ENERGY,
    IDLE,
    ONSET,
    PREFILL_EXPONENT,
    PROMPT,
    SIZE,
    TIME,
    prompt_steps_of,
)  # fmt: skip
from scheduler.energy.model.steps import BLUR_LEAST, FLAT, LINEAR, TINY, WIDTH

if TYPE_CHECKING:
    import numpy.typing as npt

    from scheduler.energy.model.filter import Filter
    from scheduler.energy.work import Work

    Floats = npt.NDArray[np.float64]

BINDS_LEAST = 0.01
"""Share of the busy time in which a limit binds; below, it does not."""
OVER_LIMIT = 1.5
"""Times the limit, for as long as a window is, nothing draws on average: bursts that the limiter is too slow for do."""
Quadratic = tuple[float, float, float]
"""In the number of steps: constant, linear, square."""


class Mean(NamedTuple):
    """Of some work within some seconds under a limit."""

    busy_seconds: float
    """More than the seconds: it does not fit into them."""
    joules: float
    """Idle power included; of as much as fits."""
    binding: bool


class Means:
    """Of one kind of work, as the model believes now; only its number of steps varies from question to question."""

    def __init__(self, beliefs: Filter, work: Work, most_watts: float) -> None:
        c = [float(value) for value in beliefs.values]
        time, energy = c[TIME], c[ENERGY]
        self._work = work
        self._step_seconds, self._step_joules = time[0], energy[0]
        self._decode_seconds = sum(each * time[place] for place, each in enumerate(work[1:4], 1))
        self._decode_joules = sum(each * energy[place] for place, each in enumerate(work[1:4], 1))
        self._prefill_seconds = sum(each * time[place] for place, each in enumerate(work[4:6], 4))
        self._prefill_seconds += c[PROMPT] * work.prompts
        self._prefill_joules = sum(each * energy[place] for place, each in enumerate(work[4:6], 4))
        self.idle_watts = c[IDLE]
        self._most_watts = most_watts
        self._onset, self._draw, self._average = c[ONSET], c[DRAW], max(c[AVERAGE], 1e-6)
        self._exponents = c[DECODE_EXPONENT], c[PREFILL_EXPONENT]
        self._above_most = max(most_watts - self.idle_watts, 0.0)
        self._of_time, self._of_both, self._of_energy = _spreads(beliefs, work)

    def within(self, seconds: float, steps: float, limit_watts: float) -> Mean:
        """The work in so many steps within so many seconds, under a limit on all GPUs together: the values of
        `EnergyModel.predict_window`."""
        busy, above, binding = self._under(steps, limit_watts)
        if busy > seconds:  # as much as fits is done
            above *= seconds / busy
        most = min(self._most_watts, OVER_LIMIT * limit_watts) * seconds
        idle = self.idle_watts * seconds
        return Mean(busy, min(idle + above, max(most, idle)), binding)

    def _under(self, steps: float, limit_watts: float) -> tuple[float, float, bool]:
        """(busy seconds, joules above idle power, whether the limit binds)."""
        work = self._work
        decode_seconds = self._decode_seconds + steps * self._step_seconds
        decode_joules = self._decode_joules + steps * self._step_joules
        blur = self._blur(steps, decode_seconds + self._prefill_seconds, decode_joules + self._prefill_joules)
        mixed, longer, late = prompt_steps_of(work._replace(steps=steps))
        pure_seconds = (1 - mixed) * decode_seconds
        pure_joules = min((1 - mixed) * decode_joules, self._above_most * max(pure_seconds, TINY))
        seconds = mixed * decode_seconds + self._prefill_seconds
        joules = min(mixed * decode_joules + self._prefill_joules, self._above_most * max(seconds, TINY))
        decode_exponent, prefill_exponent = self._exponents
        share = self._prefill_seconds / max(seconds, TINY)
        exponent = decode_exponent * (1 - share) + prefill_exponent * share
        burst = longer * seconds / max(mixed * steps, 1.0)
        if late is None:
            before = self.idle_watts + (joules + pure_joules) / max(seconds + pure_seconds, TINY)
        else:
            base = pure_joules / max(pure_seconds, TINY)
            before = self.idle_watts + base + late * (joules / max(seconds, TINY) - base)
        one = self._held(pure_seconds, pure_joules, decode_exponent, limit_watts, blur, None)
        other = self._held(seconds, joules, exponent, limit_watts, blur, (burst, before))
        busy = one[0] + other[0]
        return busy, one[1] + other[1], (one[2] + other[2]) / max(busy, TINY) > BINDS_LEAST

    def _held(
        self, seconds: float, joules: float, exponent: float, limit: float, blur: float,
        burst: tuple[float, float] | None,
    ) -> tuple[float, float, float]:  # fmt: skip
        """As `equations._under`."""
        idle = self.idle_watts
        demand = idle + joules / max(seconds, TINY)
        usual = max(demand, 1.0)
        spread = max(blur, BLUR_LEAST) * usual
        over, binding = _positive_part((demand - max(self._draw * limit, idle)) / spread)
        slow, _ = _positive_part((self._onset * demand / limit - 1) * (usual / spread))
        slowdown = (1 + slow * spread / usual) ** exponent
        drawn = max(demand - over * spread - idle, 0.0)
        if burst is None:
            slowed = seconds * slowdown
            return slowed, drawn * slowed, binding * slowed
        felt = self._felt(burst, demand, max(over * spread, 1e-6 * usual))
        held, free = seconds * felt * slowdown, seconds * (1 - felt)
        return held + free, drawn * held + (demand - idle) * free, binding * held

    def _felt(self, burst: tuple[float, float], demand: float, over: float) -> float:
        """As `equations._felt`."""
        constant = self._average
        gap = max(demand - burst[1], 0.0)
        lasts = max(burst[0], TINY)
        left = max(lasts - constant * log(max(gap / over, 1.0)), 0.0)
        missing = min(gap / over, 1.0) * constant * -expm1(-left / constant)
        return min(max((left - missing) / lasts, 0.0), 1.0)

    def _blur(self, steps: float, seconds: float, joules: float) -> float:
        """As `equations.demand_error`."""
        if seconds <= TINY or joules <= TINY:
            return 0.0
        time, both, energy = (
            of[0] + steps * (of[1] + steps * of[2]) for of in (self._of_time, self._of_both, self._of_energy)
        )
        variance = energy / joules**2 - 2 * both / (joules * seconds) + time / seconds**2
        return sqrt(variance) if variance > 0 else 0.0


def _spreads(beliefs: Filter, work: Work) -> tuple[Quadratic, Quadratic, Quadratic]:
    """Variance of the work's seconds, covariance with its joules, variance of these, by the number of steps."""
    scale, covariance = beliefs.scale, beliefs.covariance
    rows = np.zeros((4, SIZE))  # seconds and joules of all but the steps; of one step
    rest = np.array([0.0, *work[1:6]])
    rows[0, TIME], rows[0, PROMPT] = rest * scale[TIME], work.prompts * scale[PROMPT]
    rows[1, ENERGY] = rest * scale[ENERGY]
    rows[2, TIME.start] = scale[TIME.start]
    rows[3, ENERGY.start] = scale[ENERGY.start]
    of = (rows @ covariance @ rows.T).tolist()
    return (
        (of[0][0], 2 * of[0][2], of[2][2]),
        (of[0][1], of[0][3] + of[2][1], of[2][3]),
        (of[1][1], 2 * of[1][3], of[3][3]),
    )


def _positive_part(z: float) -> tuple[float, float]:
    """(E max(0, z + N), P(z + N > 0)), as `equations._positive_part`."""
    scaled = min(max(z / WIDTH, -FLAT), FLAT)
    grown = exp(-scaled)
    return z if z > LINEAR else WIDTH * log1p(1 / grown), 1 / (1 + grown)
