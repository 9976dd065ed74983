"""What may be said whenever one looks? A confidence sequence over the pairs' differences: with 95 % probability the
effect is in all of its intervals, from the first pair to the last.

A pair's difference is the effect plus or minus what the two blocks differ in anyway, and the sign is a coin that the
design threw. So difference - effect is symmetric around 0 whatever the traffic, and exp(bx - b²x²/2) is a
supermartingale (de la Peña, "A general class of exponential inequalities", 1999). Mixed over b ~ N(0, 1/scale), as in
Robbins' normal mixture, the effects t that are kept at level a are those with

    (sum(d) - n t)² / (V(t) + scale) <= log((V(t) + scale) / scale) + 2 log(1/a),    V(t) = sum((d - t)²)

No variance is estimated, so it holds from the first pair on, not only for many (as asymptotic sequences do).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FARTHEST = 6.9
"""log(1000): no arm is a thousand times the other. Effects beyond are not looked at."""
STEPS = 60


def confidence_sequence(
    differences: NDArray[np.float64], scale: float, error: float = 0.05
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends after 1, 2, … pairs; -inf and inf while there are too few to say anything. `scale` is fixed
    beforehand: `scheduler.experiments.evidence.sharpest_scale`."""
    count = np.arange(1, len(differences) + 1, dtype=float)
    total, squares = np.cumsum(differences), np.cumsum(differences**2)
    middle = total / count
    reach = FARTHEST + np.abs(middle)

    def kept(at: NDArray[np.float64]) -> NDArray[np.bool_]:
        spread = np.maximum(squares - 2 * at * total + count * at**2, 0.0) + scale
        kept_: NDArray[np.bool_] = (total - count * at) ** 2 / spread <= np.log(spread / scale) + 2 * np.log(1 / error)
        return kept_

    # Far away the squares outgrow the sum, and what was excluded comes back: then nothing can be said yet.
    says = ~kept(middle - reach) & ~kept(middle + reach)
    low, high = _edge(kept, middle, -reach), _edge(kept, middle, reach)
    return np.where(says, low, -np.inf), np.where(says, high, np.inf)


def _edge(
    kept: Callable[[NDArray[np.float64]], NDArray[np.bool_]], middle: NDArray[np.float64], reach: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The end of what is kept, on one side: halved until it is known, and the excluded side of it is told."""
    inside, outside = np.zeros_like(middle), np.ones_like(middle)
    for _ in range(STEPS):
        at = (inside + outside) / 2
        good = kept(middle + at * reach)
        inside, outside = np.where(good, at, inside), np.where(good, outside, at)
    found: NDArray[np.float64] = middle + outside * reach
    return found
