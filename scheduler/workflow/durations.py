"""How long will a call take from dispatch to finish? Learned from the calls that finished, until there is better.

    seconds = a + b · uncached prompt tokens + c · output tokens          (per model)

Least squares of relative errors with forgetting, so that the coefficients follow the load; outliers count less
(Huber); what has been forgotten is replaced by the prior, so that it neither winds up nor goes wild where all calls
are alike. Coefficients are never negative.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from scheduler.workflow.quantiles import SURE_FROM_VALUES, LruTable, RecentQuantiles

MODELS_MAX = 256
PRIOR = (0.1, 1.0 / 20_000.0, 0.012)
"""Seconds a call, an uncached prompt token, an output token: an 8B model on one data-centre GPU under some load."""
PRIOR_RELATIVE_SPREAD = 1.0
NOISE_RELATIVE = 0.2
"""What a good fit is off by; beyond `HUBER_NOISES` of it a call counts less."""
HUBER_NOISES = 3.0
KEPT = 0.98
"""Weight of the past at each call: about 50 calls are remembered."""
REFIT_CALLS = 8
UPPER_RATIO_UNSEEN = 1.5
SECONDS_MIN = 1e-4
RATIO_MOST = 1e3
"""A call that took more times than this what was fitted says as much about the spread as one that took so many."""


class SecondsForecast(NamedTuple):
    """A duration's median, and how far above it the upper quantile lies."""

    seconds: float
    spread_seconds: float


class DurationModel(Protocol):
    """Whatever predicts durations of calls. Pure: it learns from `observe` alone."""

    def forecast(
        self,
        model: str | None,
        uncached_tokens: float,
        output_tokens: float,
        output_tokens_upper: float,
        context_tokens: float = 0.0,
    ) -> SecondsForecast:
        """From dispatch to finish at the present load."""
        ...

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """A call took so long."""
        ...


_PRECISION = [(NOISE_RELATIVE / (PRIOR_RELATIVE_SPREAD * value)) ** 2 for value in PRIOR]
_FILLED = [(1.0 - KEPT) * precision for precision in _PRECISION]
_PRIOR_MATRIX = ((0, _FILLED[0]), (1, 0.0), (2, 0.0), (3, _FILLED[1]), (4, 0.0), (5, _FILLED[2]))
_PRIOR_RIGHT = tuple((place, _FILLED[place] * PRIOR[place]) for place in range(3))


class _Fit:
    """One model's coefficients, and how the calls' times spread around them."""

    __slots__ = ("coefficients", "matrix", "ratios", "right", "since_refit")

    def __init__(self) -> None:
        self.matrix = [_PRECISION[0], 0.0, 0.0, _PRECISION[1], 0.0, _PRECISION[2]]
        """Upper triangle, by rows."""
        self.right = [weight * value for weight, value in zip(_PRECISION, PRIOR, strict=True)]
        self.coefficients = PRIOR
        self.ratios = RecentQuantiles()
        """Measured seconds / fitted seconds."""
        self.since_refit = 0

    def forget_a_little(self) -> None:
        """What is forgotten of the calls is filled up with the prior."""
        matrix, right = self.matrix, self.right
        for place, base in _PRIOR_MATRIX:
            matrix[place] = KEPT * matrix[place] + base
        for place, base in _PRIOR_RIGHT:
            right[place] = KEPT * right[place] + base

    def fitted(self, uncached_tokens: float, output_tokens: float) -> float:
        fixed, prompt, output = self.coefficients
        return max(SECONDS_MIN, fixed + prompt * uncached_tokens + output * output_tokens)


_PRIOR_FIT = _Fit()


class LearnedDurations:
    """A `DurationModel`: one linear fit a model, in bounded memory."""

    def __init__(self) -> None:
        self._fits: LruTable[str | None, _Fit] = LruTable(MODELS_MAX, _Fit)
        self._latest = _PRIOR_FIT

    def forecast(
        self,
        model: str | None,
        uncached_tokens: float,
        output_tokens: float,
        output_tokens_upper: float,
        context_tokens: float = 0.0,
    ) -> SecondsForecast:
        """The fit, corrected by the median of measured / fitted; spreads of length and of time add as squares."""
        fit = self._fits.get(model) or _PRIOR_FIT
        seconds = fit.fitted(uncached_tokens, output_tokens)
        ratios = fit.ratios
        usual, upper = (ratios.median, ratios.upper) if ratios.count else (1.0, UPPER_RATIO_UNSEEN)
        if ratios.count < SURE_FROM_VALUES:
            upper = max(upper, usual * UPPER_RATIO_UNSEEN)
        longer = fit.coefficients[2] * max(0.0, output_tokens_upper - output_tokens) * usual
        slower = seconds * (upper - usual)
        return SecondsForecast(seconds * usual, (longer * longer + slower * slower) ** 0.5)

    def coefficients(self) -> tuple[float, float, float]:
        """Seconds a call, a new prompt token and an output token, of the model that was used last."""
        return self._latest.coefficients

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """Learn from one call; times that are not positive say nothing."""
        if seconds <= 0.0:
            return
        seconds = max(seconds, SECONDS_MIN)
        fit = self._latest = self._fits.take(model)
        fitted = fit.fitted(uncached_tokens, output_tokens)
        error = abs(seconds - fitted) / fitted
        fit.ratios.add(min(seconds / fitted, RATIO_MOST))
        tolerated = HUBER_NOISES * NOISE_RELATIVE
        weight = (1.0 if error <= tolerated else tolerated / error) / (fitted * fitted)
        fit.forget_a_little()
        prompt, output = weight * uncached_tokens, weight * output_tokens
        matrix, right = fit.matrix, fit.right
        matrix[0] += weight
        matrix[1] += prompt
        matrix[2] += output
        matrix[3] += prompt * uncached_tokens
        matrix[4] += prompt * output_tokens
        matrix[5] += output * output_tokens
        right[0] += weight * seconds
        right[1] += prompt * seconds
        right[2] += output * seconds
        fit.since_refit += 1
        if fit.since_refit >= REFIT_CALLS or fit.ratios.count <= REFIT_CALLS:
            fit.since_refit = 0
            fit.coefficients = _solve_non_negative(fit.matrix, fit.right)


def _solve_non_negative(triangle: list[float], right: list[float]) -> tuple[float, float, float]:
    """The minimum of the quadratic form under non-negative coefficients: the most negative is held at 0, again."""
    a, b, c, d, e, f = triangle
    matrix = ((a, b, c), (b, d, e), (c, e, f))
    free = [0, 1, 2]
    while free:
        solved = _solve([[matrix[row][column] for column in free] + [right[row]] for row in free])
        lowest = min(range(len(free)), key=solved.__getitem__)
        if solved[lowest] >= 0.0:
            values = [0.0, 0.0, 0.0]
            for index, value in zip(free, solved, strict=True):
                values[index] = value
            return values[0], values[1], values[2]
        del free[lowest]
    return PRIOR


def _solve(rows: list[list[float]]) -> list[float]:
    """Gauss without pivoting: the matrix is positive definite, thanks to the prior."""
    size = len(rows)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = rows[row][pivot] / rows[pivot][pivot]
            for column in range(pivot, size + 1):
                rows[row][column] -= factor * rows[pivot][column]
    solved = [0.0] * size
    for row in reversed(range(size)):
        rest = sum(rows[row][column] * solved[column] for column in range(row + 1, size))
        solved[row] = (rows[row][size] - rest) / rows[row][row]
    return solved
