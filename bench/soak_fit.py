"""Does memory grow with the streams served? Its slope, with an interval that owns up to the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_SAMPLES = 6
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Slope:
    """KiB per 1,000 streams with its 95 % interval; `effective_samples` is what the correlated samples are worth."""

    kib_per_1000: float
    low: float
    high: float
    samples: int
    effective_samples: float


def fit_slope(streams: Sequence[float], resident_kib: Sequence[float]) -> Slope | None:
    """Least squares of resident memory on streams; None with fewer than MIN_SAMPLES samples or no spread in streams.

    Memory moves in steps (an arena, a grown table), so neighbouring samples err alike and the textbook interval would
    be far too narrow: the number of samples is reduced by the first-order correlation of the residuals.
    """
    x = np.asarray(streams, dtype=float) / 1000
    y = np.asarray(resident_kib, dtype=float)
    if len(x) < MIN_SAMPLES or x.min() == x.max():
        return None
    spread = float(((x - x.mean()) ** 2).sum())
    design = np.column_stack([np.ones_like(x), x])
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ coefficients
    squares = float((residuals**2).sum())
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / squares if squares > 0 else 0.0
    correlation = min(max(correlation, 0.0), 0.99)
    effective = max(len(x) * (1 - correlation) / (1 + correlation), 5.0)
    error = math.sqrt(squares / (len(x) - 2) / spread * (len(x) / effective))
    slope = float(coefficients[1])
    half = _t_quantile_95(effective - 2) * error
    return Slope(slope, slope - half, slope + half, len(x), effective)


def _t_quantile_95(degrees: float) -> float:
    """The two-sided 95 % quantile of Student's t, within 1 % from 3 degrees of freedom up (Cornish-Fisher)."""
    z = _Z_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
