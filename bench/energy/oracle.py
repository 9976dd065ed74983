"""What would somebody be off by who knew every price? What is left is the windows' own noise, and no model's fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scheduler.energy.model.equations import AVERAGE, DRAW, IDLE, Limits, most_watts, new_filter
from scheduler.energy.model.expect import expect
from scheduler.energy.model.noise import EDGE_SECONDS, Noise

if TYPE_CHECKING:
    from backends.twin.calibration import Calibration
    from scheduler.energy.model.expect import Expected
    from scheduler.energy.model.prior import Prior
    from scheduler.energy.window import Window
    from scheduler.energy.work import Work


class Oracle:
    """The live model's equations with the twin's own coefficients, on the windows that the gateway sees. It learns
    nothing but how far busy time and joules are off together, as the live model does."""

    def __init__(self, prior: Prior, calibration: Calibration) -> None:
        self._most_watts = most_watts(prior)
        beliefs = new_filter(prior)
        beliefs.mean[AVERAGE] = calibration.cap.average_seconds / prior.cap.average_seconds
        beliefs.mean[DRAW] = calibration.cap.draw / prior.cap.draw
        beliefs.covariance = np.eye(len(beliefs.mean)) * 1e-12
        self._beliefs, self._noise = beliefs, Noise()

    def joules(self, work: Work, seconds: float, limit_watts: float | None, busy_seconds: float) -> float:
        """Of a window whose busy time is known."""
        value, _ = self._expect(work, seconds, limit_watts).given_busy(busy_seconds)
        idle = float(self._beliefs.values[IDLE])
        return max(value, idle * seconds)

    def learn(self, window: Window) -> None:
        """How noisy it was."""
        joules = window.energy.gpu
        if joules is None or not window.whole or window.limit_moved or not window.seen.steps:
            return
        expected = self._expect(window.seen, window.seconds, window.limit_watts)
        residual = np.array([window.busy_seconds - expected.busy_seconds, joules - expected.joules])
        distance = float(residual @ np.linalg.solve(expected.total, residual))
        self._noise.saw(residual, expected.total, expected.noise, min(6 / (4 + distance), 1.0), bound=expected.bound)

    def _expect(self, work: Work, seconds: float, limit_watts: float | None) -> Expected:
        limits = Limits(limit_watts or None, limit_watts or None)
        return expect(self._beliefs, self._noise, work, seconds, limits, EDGE_SECONDS, self._most_watts)
