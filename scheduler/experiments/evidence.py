"""How strong is the evidence, looked at again and again? E-values: under the hypothesis none ever reaches 1/error,
but with that chance (Ville's inequality), however often one looks."""

from __future__ import annotations

from math import exp, inf, log

_STEPS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Alternatives to a share p: p + step (1 - p). Evidence is their mean, so that none has to be right."""


def log_evidence_of_share(bad: int, of: int, most: float) -> float:
    """Log of the e-value against "each is bad with a chance of at most `most`", `bad` of them being so.

    A mean of likelihood ratios of Bernoulli trials; each is a supermartingale for any chance up to `most`.
    """
    assert 0 <= bad <= of
    if most >= 1.0:
        return -inf
    most = max(most, 1e-9)
    logs = []
    for step in _STEPS:
        other = most + step * (1.0 - most)
        logs.append(bad * log(other / most) + (of - bad) * (log(1.0 - other) - log(1.0 - most)))
    top = max(logs)
    return top + log(sum(exp(value - top) for value in logs) / len(logs))


def log_evidence_of_sum(total: float, squares: float, scale: float) -> float:
    """Log of the e-value against "these numbers are symmetric around 0", of their sum and their sum of squares.

    For symmetric x, exp(bx - b²x²/2) has a mean of at most 1 whatever the size of x (de la Peña 1999), since
    cosh(bx) <= exp(b²x²/2); this is its mixture over b ~ N(0, 1/scale). It holds for any number of them and any spread.
    `scale` (a sum of squares, chosen beforehand) only says at which amount of data it is sharpest.
    """
    assert scale > 0 and squares >= 0
    return 0.5 * (total * total / (squares + scale) - log((squares + scale) / scale))


def sharpest_scale(spread: float, count: int, error: float = 0.05) -> float:
    """The `scale` that makes intervals of `count` differences of this standard deviation about as short as can be."""
    looseness = -2.0 * log(error)
    return count * spread * spread / (looseness + log(1.0 + looseness))
