"""How do coefficients follow what is seen? A Kalman filter in units of the prior: recursive Bayesian least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

FREEDOM = 4.0
"""Degrees of freedom of the residuals' Student-t: an outlier of 6 standard errors counts a sixth."""
MOST = 20.0
"""Times the prior: a coefficient beyond that is not learned but lost."""


STEP_MOST = 1.0
"""One window moves no coefficient by more than itself (or by more than 0.3 of the prior, where it is less)."""
STEP_LEAST = 0.3


class Filter:
    """Mean and covariance of coefficients divided by `scale`; never outside `bounds` (0 to 20, in units of the prior,
    where none are given), and never made less certain by time than `widest`.

    `widest` (relative standard errors, shape (n,)) bounds what forgetting does to coefficients that nothing is learned
    of for a long time.
    """

    def __init__(self, values: Floats, errors: Floats, bounds: tuple[Floats, Floats] | None = None) -> None:
        self.scale = values.copy()
        self.widest = errors / values
        self.mean = np.ones_like(values)
        self.bounds = bounds or (np.zeros_like(values), np.full_like(values, MOST))
        self.covariance = np.diag(self.widest**2)

    @property
    def values(self) -> Floats:
        """The coefficients, in their units."""
        return self.mean * self.scale

    @property
    def errors(self) -> Floats:
        """Their standard errors, in their units."""
        return np.sqrt(np.diag(self.covariance)) * self.scale

    def wander(self, variance: float) -> None:
        """Time has passed: each coefficient may have moved by this relative variance."""
        size = np.clip(self.mean, 0.1, 3.0)
        diagonal = np.diag(self.covariance)
        room = np.maximum((self.widest * size) ** 2 - diagonal, 0.0)
        self.covariance[np.diag_indices_from(self.covariance)] += np.minimum(variance * size**2, room)

    def doubt(self, relative: Floats) -> None:
        """The coefficients may be others now, by these relative standard errors (n,): none is surer than before."""
        wanted = (relative * np.clip(self.mean, 0.3, 3.0)) ** 2
        diagonal = np.diag(self.covariance)
        self.covariance[np.diag_indices_from(self.covariance)] += np.maximum(wanted - diagonal, 0.0)
        # Its width is allowed from here on: what is forgotten after a change is as uncertain as the change made it.
        self.widest = np.maximum(self.widest, relative)

    def update(
        self, slopes: Floats, residual: Floats, noise: Floats, *, robust: bool, kept: slice | None = None
    ) -> float:
        """Learn from m figures at once; returns the weight that they were given, from 0 to (m + 4) / 4.

        slopes (m, n): d figures / d mean; residual (m,): seen − expected; noise (m, m): their covariance.
        `kept`: coefficients that are not touched; that they are uncertain is still reckoned with (Schmidt 1966).
        `robust`: by its weight under a Student-t (iterated least squares, one round), else 1.
        """
        spread = slopes @ self.covariance
        total = spread @ slopes.T + noise
        weight = 1.0
        if robust:
            distance = float(residual @ np.linalg.solve(total, residual))
            weight = (FREEDOM + len(residual)) / (FREEDOM + distance)
            total = total + (1 / weight - 1) * noise
        gain = np.linalg.solve(total, spread).T
        if kept is not None:
            gain[kept] = 0.0
        move = gain @ residual
        room = STEP_MOST * np.maximum(self.mean, STEP_LEAST)
        self.mean = self.mean + move * min(1.0, 1.0 / max(float(np.max(np.abs(move) / room)), 1e-12))
        left = np.eye(len(self.mean)) - gain @ slopes  # Joseph's form: stays symmetric and positive with any gain
        after = left @ self.covariance @ left.T + gain @ (noise / weight) @ gain.T
        self.covariance = (after + after.T) / 2
        self._into_bounds()
        return weight

    def _into_bounds(self) -> None:
        """Onto the nearest coefficients that are not below their bounds, near as the covariance measures; the worst one
        first. What is over its bound is cut off."""
        low, high = self.bounds
        for _ in range(len(self.mean)):
            below = low - self.mean
            place = int(np.argmax(below))
            if below[place] <= 0:
                break
            variance = self.covariance[place, place]
            if variance > 0:
                self.mean = self.mean + self.covariance[:, place] * (below[place] / variance)
            self.mean[place] = low[place]
        self.mean = np.clip(self.mean, low, high)
