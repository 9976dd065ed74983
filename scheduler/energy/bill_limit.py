"""What does a power limit leave of a call's price? Long prompts lose most: the limiter is too slow for short ones."""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING

from scheduler.energy.bill_prices import price
from scheduler.energy.work import Work

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from scheduler.energy.bill_prices import Tariff
    from scheduler.energy.model.steps import StepPrices
    from scheduler.energy.window import Window

    Floats = npt.NDArray[np.float64]

LEAST_LEFT = 0.3
FIRST_POWER = 7
"""The curve begins at prompts of 2⁷ tokens, of which a limit takes next to nothing, and has a point for each doubling,
up to 2¹³: vLLM's budget of a step."""
POINTS = 7
NO_LIMIT = (1.0,) * POINTS
RATE = 0.2
"""Weight of the last window in what the limit leaves of prompts."""
SAME = 0.02
"""Limits that differ by less are one."""
STEPS_BETWEEN = 50.0
"""Decode steps between two prompts, in a window without any."""


def left_of(tariff: Tariff, tokens: float) -> float:
    """Share of the price of computing a prompt of so many tokens that the limit leaves."""
    curve = tariff.prefill_curve
    if not curve:
        return tariff.prefill_left
    if tokens <= 1 << FIRST_POWER:
        return curve[0]
    place = log2(tokens) - FIRST_POWER
    whole = int(place)
    if whole >= POINTS - 1:
        return curve[-1]
    below = curve[whole]
    return below + (place - whole) * (curve[whole + 1] - below)


def all_left_of(tariff: Tariff, tokens: Floats) -> Floats:
    """The same for many prompts, of a tariff that has a curve."""
    import numpy as np  # there are windows, so it is loaded already

    doublings = np.log2(np.maximum(tokens, 1.0)) - FIRST_POWER
    left: Floats = np.interp(doublings, np.arange(POINTS), tariff.prefill_curve)
    return left


def under_limit(tariff: Tariff, believed: StepPrices, window: Window) -> Tariff:
    """The same work draws less under a power limit that binds, and steps with prompt tokens reach it first: what the
    limit takes off a step of either kind is taken off all its terms. design.md's cap layer, by the model's own word,
    for the window's mean decode step and for a prompt of each length among such steps.

    Asked about are typical steps and not the window as it is: what an edge cut off it would be taken for a limit's.
    """
    work, limit = window.seen, window.limit_watts
    if work.steps <= 0 or limit is None:
        return tariff
    import numpy as np  # there is a model, so it is loaded already

    from scheduler.energy.model.equations import Limits, forward

    time, energy, prompt_seconds, idle_watts, cap = believed[:5]
    values = np.array([[*time, *energy, prompt_seconds, idle_watts, *cap]])  # in the order of NAMES

    def joules(of: Work, at: Floats = values) -> Floats:
        return forward(at, of, Limits(limit, limit)).above_idle_joules

    steps = max(work.steps / work.prompts, 1.0) if work.prompts > 0.5 else STEPS_BETWEEN
    decode = work * (steps / work.steps)
    decode = Work(steps, decode[1], decode[2], decode[3])
    free = tariff._replace(decode_left=1.0, prefill_left=1.0, prefill_curve=())
    whole = price(free, decode).total
    if whole <= 0:
        return tariff
    limited = float(joules(decode)[0])
    lost_decoding = (whole - limited) * (steps - 1) / steps
    # All lengths at once: one prompt of one "token" and one "pair", which cost as much as all of theirs.
    tokens = 2.0 ** np.arange(FIRST_POWER + POINTS - 1, FIRST_POWER - 1, -1)
    of_each = np.tile(values, (POINTS, 1))
    for token, pair in ((4, 5), (10, 11)):
        of_each[:, token] *= tokens
        of_each[:, pair] *= tokens * tokens / 2
    own = of_each[:, 10] + of_each[:, 11]
    lost = whole + own - joules(decode._replace(prefill_tokens=1.0, attention_pairs=1.0, prompts=1.0), of_each)
    mixed = own + whole / steps
    curve = [_share(of - gone, of) for of, gone in zip(mixed.tolist(), (lost - lost_decoding).tolist(), strict=True)]
    tariff = tariff._replace(decode_left=_share(limited, whole))
    if curve[0] > 0.999:  # not even of the longest
        return tariff
    tariff = tariff._replace(prefill_curve=tuple(reversed(curve)))
    return tariff._replace(prefill_left=_mean_left(tariff, window))


class SteadyLimit:
    """What a limit leaves, over the last windows: what it finds before a prompt differs from one to the next, and what
    a call was told in one is put right in another."""

    def __init__(self) -> None:
        self._curve: tuple[float, ...] | None = None
        self._limit_watts: float | None = None

    def of(self, tariff: Tariff, window: Window) -> Tariff:
        """The window's tariff, with the curve of the last ones of the same limit."""
        limit, own = window.limit_watts, tariff.prefill_curve or NO_LIMIT
        before = self._curve
        if limit is None or before is None or self._limit_watts is None or abs(limit / self._limit_watts - 1) > SAME:
            self._curve = own
        elif window.work.prompts > 0:
            self._curve = tuple([old + RATE * (new - old) for old, new in zip(before, own, strict=True)])
        self._limit_watts = limit
        if self._curve is None or min(self._curve) > 0.999:
            return tariff
        tariff = tariff._replace(prefill_curve=self._curve)
        return tariff._replace(prefill_left=_mean_left(tariff, window))


def _mean_left(tariff: Tariff, window: Window) -> float:
    """Of the window's prompts together."""
    work = window.calls.work + window.calls.correction
    computed = work[:, 4] > 0
    tokens = work[computed, 4]
    joules = tariff.prefill_token * tokens + tariff.attention_pair * work[computed, 5]
    whole = float(joules.sum())
    return float((joules * all_left_of(tariff, tokens)).sum()) / whole if whole > 0 else 1.0


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, LEAST_LEFT), 1.0) if whole > 0 else 1.0
