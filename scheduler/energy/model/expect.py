"""What does the model expect of a window, and how sure is it? Mean and covariance of its busy time and its joules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.model.equations import IDLE, demand_error, jacobian
from scheduler.energy.model.results import Interval

if TYPE_CHECKING:
    import numpy.typing as npt

    from scheduler.energy.model.equations import Limits
    from scheduler.energy.model.filter import Filter
    from scheduler.energy.model.noise import Noise
    from scheduler.energy.work import Work

    Floats = npt.NDArray[np.float64]


BOUND_SHARE = 0.5
"""Of the busy time: from here on the cap decides what is drawn."""


class Expected(NamedTuple):
    """Before it is seen."""

    busy_seconds: float
    joules: float
    slopes: Floats
    """(2, SIZE): d(busy seconds, joules) / d(coefficients in units of the prior)."""
    noise: Floats
    """(2, 2): their covariance with exact coefficients."""
    total: Floats
    """(2, 2): with the coefficients' own uncertainty."""
    binding: float
    """Share of the busy time in which the cap binds."""
    most_watts: float
    """No work draws more."""

    def given_busy(self, busy_seconds: float) -> tuple[float, float]:
        """(joules, standard error) once the busy time is known: what it says of the joules is taken in."""
        # A second more of busy time costs no more than the card can draw, whatever a covariance that is lost says.
        gain = min(max(float(self.total[1, 0] / self.total[0, 0]), 0.0), self.most_watts)
        both = float(self.total[0, 1])
        variance = float(self.total[1, 1]) + gain * (gain * float(self.total[0, 0]) - 2 * both)
        return self.joules + gain * (busy_seconds - self.busy_seconds), _root(variance)

    @property
    def bound(self) -> bool:
        """The cap binds most of the time."""
        return self.binding > BOUND_SHARE

    @property
    def joules_error(self) -> float:
        """Standard error, the busy time not known."""
        return _root(self.total[1, 1])

    @property
    def busy_error(self) -> float:
        """Standard error."""
        return _root(self.total[0, 0])


def expect(
    beliefs: Filter, noise: Noise, work: Work, seconds: float, limits: Limits, edge_seconds: float, most_watts: float
) -> Expected:
    """Of work within some seconds under limits. `edge_seconds`: see Noise; 0 for what has no edges. `most_watts`: what
    no work draws more than."""
    values = beliefs.values
    blur = 0.0
    if limits.prefill is not None:
        blur = demand_error(values, beliefs.scale, beliefs.covariance, work)
    result, slopes = jacobian(values, beliefs.scale, work, limits, blur, most_watts)
    busy = float(result.busy_seconds[0])
    above = float(result.above_idle_joules[0])
    slopes[1, IDLE] += seconds * beliefs.scale[IDLE]
    binding = float(result.binding[0])
    watts = min(above / busy, most_watts) if busy > 1e-6 and above > 0 else float(values[IDLE])
    own = noise.covariance(busy, watts, edge_seconds, bound=binding > BOUND_SHARE, seconds=seconds)
    total = slopes @ beliefs.covariance @ slopes.T + own
    return Expected(busy, float(values[IDLE]) * seconds + above, slopes, own, total, binding, most_watts)


def interval(value: float, half_width: float, least: float = 0.0, most: float = float("inf")) -> Interval:
    """Around a figure that cannot be negative, below `least` or over `most` (its upper bound neither). The lower bound
    may be below `least`, which is a belief itself."""
    value = min(max(value, least), max(most, least))
    return Interval(value, max(value - half_width, 0.0), max(value, min(value + half_width, most)))


def _root(variance: float) -> float:
    return float(np.sqrt(max(variance, 1e-18)))
