"""What does the model remember, how is it kept over a restart, and how is it shown?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.energy.model.astray import Astray
from scheduler.energy.model.coverage import Coverage
from scheduler.energy.model.drift import DriftTest
from scheduler.energy.model.equations import NAMES, SIZE, UNITS, new_filter, prior_values
from scheduler.energy.model.noise import VARIANCE_LEAST, Noise

if TYPE_CHECKING:
    from scheduler.energy.model.filter import Filter
    from scheduler.energy.model.prior import Prior
    from scheduler.energy.window import Window

VERSION = 4
COVERAGES = ("given", "pairs", "planned", "busy", "idle")
COUNTS = ("used", "used_idle", "used_binding", "alarms", "begun_anew")
ERROR_RATE = 0.02
JOULES_LEAST = 1.0
"""Of less, no relative error is taken."""


@dataclass(slots=True, eq=False)
class ModelState:
    """All of it."""

    beliefs: Filter
    noise: Noise
    given: Coverage = field(default_factory=Coverage)
    """Of joules, the busy time known."""
    pairs: Coverage = field(default_factory=Coverage)
    """The same of two adjoining windows together."""
    planned: Coverage = field(default_factory=Coverage)
    """Of joules, the busy time not known."""
    busy: Coverage = field(default_factory=Coverage)
    """Of the busy time."""
    idle: Coverage = field(default_factory=Coverage)
    """Of joules of idle windows."""
    drift: DriftTest = field(default_factory=lambda: DriftTest(2))
    idle_drift: DriftTest = field(default_factory=lambda: DriftTest(1))
    astray: Astray = field(default_factory=Astray)
    drifting_seconds: float = 0.0
    """What is left of the time after an alarm in which it learns fast."""
    last_end: float | None = None
    """Of the last window, in the core's seconds: another process has others, so it is not exported."""
    last_residual: tuple[float, float] | None = None
    """Of its joules, with its standard error, if it was a busy one whose limit did not move. Not exported either."""
    used: int = 0
    used_idle: int = 0
    used_binding: int = 0
    alarms: int = 0
    begun_anew: int = 0
    """So often it had gone astray and went back to its prior."""
    marked: dict[str, int] = field(default_factory=dict)
    """Why a window taught nothing → how many."""
    relative_error: float | None = None
    """Mean error of joules of busy windows, without sign, of the last fifty or so."""
    bias: float = 0.0
    """The same with sign: above 0, too much was predicted."""

    def quantile_given(self, seconds: float) -> float:
        """Standard errors that hold nine of ten, of joules of a window of such a length, the busy time known."""
        usual = self.noise.usual_seconds
        longer = min(max(seconds / usual - 1.0, 0.0), 1.0) if usual else 0.0
        return self.given.quantile + longer * (self.pairs.quantile - self.given.quantile)

    def saw_neighbours(self, window: Window, joules: float, error: float) -> None:
        """A busy window's residual and its standard error: how it goes with that of the one before it."""
        before = self.last_residual
        self.last_residual = None
        if window.limit_moved or self.drifting_seconds > 0:
            return
        self.last_residual = joules, error
        usual = self.given.beyond_normal
        standardised = None
        if before is not None:
            both = before[1] ** 2 + error**2 + 2 * self.noise.neighbours * before[1] * error
            self.pairs.saw((before[0] + joules) / max(both, VARIANCE_LEAST) ** 0.5)
            standardised = before[0] / before[1] / usual
        self.noise.saw_neighbours(window.seconds, standardised, joules / error / usual)

    def saw_error(self, predicted: float, measured: float) -> None:
        """A busy window's joules."""
        if measured < JOULES_LEAST:
            return
        error = predicted / measured - 1
        if self.relative_error is None:
            self.relative_error, self.bias = abs(error), error
        self.relative_error += ERROR_RATE * (abs(error) - self.relative_error)
        self.bias += ERROR_RATE * (error - self.bias)


def exported(state: ModelState) -> dict[str, Any]:
    """As JSON types."""
    beliefs = state.beliefs
    return {
        "version": VERSION,
        "names": list(NAMES),
        "scale": beliefs.scale.tolist(),
        "widest": beliefs.widest.tolist(),
        "mean": beliefs.mean.tolist(),
        "covariance": beliefs.covariance.tolist(),
        "noise": state.noise.export(),
        **{name: getattr(state, name).export() for name in COVERAGES},
        "drift": state.drift.export(),
        "idle_drift": state.idle_drift.export(),
        "astray": state.astray.export(),
        "drifting_seconds": state.drifting_seconds,
        **{name: getattr(state, name) for name in COUNTS},
        "marked": dict(state.marked),
        "relative_error": state.relative_error,
        "bias": state.bias,
    }


def restored(data: dict[str, Any], prior: Prior) -> ModelState:
    """From `exported`. ValueError if it is not that."""
    try:
        if data["version"] != VERSION or data["names"] != list(NAMES):
            raise ValueError(f"version {data['version']!r} is not {VERSION}, or its coefficients are others")
        beliefs = new_filter(prior)
        for name in ("scale", "widest", "mean"):
            setattr(beliefs, name, _numbers(data[name], (SIZE,), name))
        beliefs.covariance = _numbers(data["covariance"], (SIZE, SIZE), "covariance")
        if (beliefs.scale <= 0).any() or (beliefs.mean < 0).any() or (np.diag(beliefs.covariance) < 0).any():
            raise ValueError("a coefficient or its variance is negative")
        state = ModelState(beliefs, Noise.restored(data["noise"]))
        for name in COVERAGES:
            setattr(state, name, Coverage.restored(data[name]))
        state.drift = DriftTest.restored(data["drift"])
        state.idle_drift = DriftTest.restored(data["idle_drift"])
        state.astray = Astray.restored(data["astray"])
        state.drifting_seconds = float(data["drifting_seconds"])
        for name in COUNTS:
            setattr(state, name, int(data[name]))
        state.marked = {str(why): int(count) for why, count in data["marked"].items()}
        error = data["relative_error"]
        state.relative_error = None if error is None else float(error)
        state.bias = float(data["bias"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a model's state: {error!r}") from None
    return state


def _numbers(data: object, shape: tuple[int, ...], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.array(data, dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"{name} has not {shape} finite numbers")
    return values


def describe(state: ModelState, prior: Prior) -> dict[str, Any]:
    """As JSON types."""
    beliefs = state.beliefs
    half = beliefs.errors * state.given.quantile
    believed, _ = prior_values(prior)
    coefficients = {
        name: {
            "value": float(value),
            "low": float(max(value - width, 0.0)),
            "high": float(value + width),
            "unit": unit,
            "prior": float(was),
        }
        for name, value, width, unit, was in zip(NAMES, beliefs.values, half, UNITS, believed, strict=True)
    }
    return {
        "prior": prior.name,
        "coefficients": coefficients,
        "residuals": {
            "relative_error": state.relative_error,
            "bias": state.bias,
            "noise": state.noise.export(),
        },
        "coverage": {
            name: {
                "windows": coverage.seen,
                "held": coverage.held / coverage.seen if coverage.seen else None,
                "recent": coverage.recent,
                "standard_errors": coverage.quantile,
            }
            for name, coverage in ((name, getattr(state, name)) for name in COVERAGES)
        },
        "drift": {
            "level": max(state.drift.level, state.idle_drift.level),
            "drifting": state.drifting_seconds > 0,
            "alarms": state.alarms,
            "begun_anew": state.begun_anew,
        },
        "windows": {
            "used": state.used,
            "idle": state.used_idle,
            "cap_binding": state.used_binding,
            "marked": dict(state.marked),
        },
    }
