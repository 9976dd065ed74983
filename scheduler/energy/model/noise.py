"""How far off are windows, besides the coefficients? The covariance of their time and energy residuals, learned."""

from __future__ import annotations

from math import hypot, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

EDGE_SECONDS = 0.07
"""A step under way at an edge, and the energy counter's 100 ms, do not depend on the window's length …"""
RELATIVE = 0.005
"""… what the equations leave out does."""
RATE = 0.03
SMALLEST, LARGEST = 0.01, 400.0
NEIGHBOURS_RATE = 0.02
NEIGHBOURS_FIRST = -0.25
NEIGHBOURS_MOST = 0.5
OUTLIER = 3.0
"""A residual counts as no more standard errors than this where it is held against its neighbour's."""
VARIANCE_LEAST = 1e-12
"""Seconds or joules, squared: below, what is left is rounding."""


class Noise:
    """Covariance of (busy seconds, joules / watts above idle), both in seconds, in units of (edge² + (relative·busy)²).

    The two go together: a prefill that an edge cut through is missing in both. That is what makes the busy time, which
    the gateway knows, a good witness of energy. Where a cap binds it is nearly all that there is to know, so windows
    in which it binds most of the time have a covariance of their own.
    """

    def __init__(self) -> None:
        self.free = np.array([[1.0, 0.85], [0.85, 1.0]])
        self.bound = np.array([[2.0, 1.96], [1.96, 2.0]])
        self.idle = 1.0
        """Variance of an idle window's joules, in units of (idle watts · edge)²."""
        self.usual_seconds = 0.0
        """Of the windows that it learned from; 0: of none so far."""
        self._squares, self._products = 1.0, NEIGHBOURS_FIRST

    @property
    def neighbours(self) -> float:
        """Correlation of the residuals of adjoining windows. -0.5: what an edge takes from one it gives to the other.
        Above 0: it is the equations that are wrong, for both of them alike."""
        return min(max(self._products / self._squares, -NEIGHBOURS_MOST), NEIGHBOURS_MOST)

    def covariance(
        self, busy_seconds: float, watts: float, edge_seconds: float = EDGE_SECONDS, *, bound: bool = False,
        seconds: float = 0.0,
    ) -> Floats:  # fmt: skip
        """Of (busy seconds, joules): shape (2, 2). `watts`: above idle, while busy. `seconds`: of the window; one that
        is longer than the usual ones is as far off as so many of them together."""
        base = hypot(edge_seconds, RELATIVE * busy_seconds)
        if edge_seconds and self.usual_seconds and seconds > self.usual_seconds:
            many = seconds / self.usual_seconds
            one = hypot(edge_seconds, RELATIVE * busy_seconds / many)
            base = max(base, one * sqrt(many + 2 * (many - 1) * self.neighbours))
        size = np.array([base, base * watts])
        return (self.bound if bound else self.free) * np.outer(size, size)

    def idle_variance(self, idle_watts: float) -> float:
        """Of an idle window's joules."""
        return self.idle * (EDGE_SECONDS * idle_watts) ** 2

    def saw(self, residual: Floats, total: Floats, noise: Floats, weight: float, *, bound: bool) -> None:
        """A window's residuals (2,), their whole covariance as it was expected, and the noise's part of it.

        One step of expectation maximisation: what of the residual is likely to be noise and not the coefficients'.
        """
        if np.diag(noise).min() < VARIANCE_LEAST:
            return  # a window in which nothing was done says nothing of how far one that did may be off
        share = noise @ np.linalg.inv(total)
        expected = noise - share @ noise + weight * np.outer(share @ residual, share @ residual)
        before = self.bound if bound else self.free
        size = np.sqrt(np.diag(noise) / np.diag(before))
        unit = (1 - RATE) * before + RATE * expected / np.outer(size, size)
        diagonal = np.clip(np.diag(unit), SMALLEST, LARGEST)
        limit = 0.995 * float(np.sqrt(diagonal[0] * diagonal[1]))
        both = float(np.clip((unit[0, 1] + unit[1, 0]) / 2, -limit, limit))
        after = np.array([[diagonal[0], both], [both, diagonal[1]]])
        if bound:
            self.bound = after
        else:
            self.free = after

    def saw_neighbours(self, seconds: float, before: float | None, standardised: float) -> None:
        """A window's length, and its residual and that of the one before it, if they adjoin, in standard errors."""
        self.usual_seconds += (seconds - self.usual_seconds) * (NEIGHBOURS_RATE if self.usual_seconds else 1.0)
        if before is None:
            return
        one, other = (min(max(value, -OUTLIER), OUTLIER) for value in (before, standardised))
        self._squares += NEIGHBOURS_RATE * ((one * one + other * other) / 2 - self._squares)
        self._squares = max(self._squares, SMALLEST)
        self._products += NEIGHBOURS_RATE * (one * other - self._products)

    def saw_idle(self, residual: float, total: float, noise: float, weight: float) -> None:
        """The same of an idle window's joules."""
        share = noise / total
        expected = noise - share * noise + weight * (share * residual) ** 2
        unit = (1 - RATE) * self.idle + RATE * expected / (noise / self.idle)
        self.idle = min(max(unit, SMALLEST), LARGEST)

    def export(self) -> dict[str, Any]:
        """Its state as JSON types."""
        return {
            "free": self.free.tolist(),
            "bound": self.bound.tolist(),
            "idle": self.idle,
            "usual_seconds": self.usual_seconds,
            "squares": self._squares,
            "products": self._products,
        }

    @classmethod
    def restored(cls, data: dict[str, Any]) -> Noise:
        """From `export`. KeyError or ValueError if it is not that."""
        self = cls()
        for name in ("free", "bound"):
            unit = np.array(data[name], dtype=np.float64)
            if unit.shape != (2, 2) or not np.isfinite(unit).all() or min(np.diag(unit)) <= 0:
                raise ValueError(f"noise.{name} is not a covariance of two figures")
            setattr(self, name, unit)
        self.idle = float(data["idle"])
        self.usual_seconds = max(float(data["usual_seconds"]), 0.0)
        self._squares, self._products = max(float(data["squares"]), SMALLEST), float(data["products"])
        return self
