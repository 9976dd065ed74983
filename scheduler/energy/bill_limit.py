"""What does a power limit leave of a call's price? Long steps lose most: the limiter is too slow for short ones."""

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
"""Curves begin at steps with 2⁷ prompt tokens, of which a limit takes next to nothing, and have a point for each
doubling, up to 2¹³: vLLM's budget of a step."""
POINTS = 7
CURVES = 3
"""One behind the other: of steps before which the limiter's average was 0, a half and 1, see `Steps` in bursts.py."""
NO_LIMIT = (1.0,) * (POINTS * CURVES)
RATE = 0.2
"""Weight of the last window in what the limit leaves of prompts."""
SAME = 0.02
"""Limits that differ by less are one."""
STEPS_BETWEEN = 50.0
"""Decode steps between two prompts, in a window without any."""


def left_of(tariff: Tariff, tokens: float) -> float:
    """Share of the price of computing a prompt of so many tokens that the limit leaves, if it comes alone."""
    return left_alone(tariff.prefill_curve, tokens) if tariff.prefill_curve else tariff.prefill_left


def left_alone(curve: tuple[float, ...], tokens: float) -> float:
    """The same by the curves of a tariff that has some."""
    if tokens <= 1 << FIRST_POWER:
        return curve[0]
    place = log2(tokens) - FIRST_POWER
    whole = int(place)
    if whole >= POINTS - 1:
        return curve[POINTS - 1]
    below = curve[whole]
    return below + (place - whole) * (curve[whole + 1] - below)


def all_left_of(tariff: Tariff, tokens: Floats, before: Floats) -> Floats:
    """Of the prompts of many steps: of so many prompt tokens in all, after what came before. The tariff has curves."""
    import numpy as np  # there are windows, so it is loaded already

    curves = np.array(tariff.prefill_curve).reshape(CURVES, POINTS)
    along = np.clip(np.log2(np.maximum(tokens, 1.0)) - FIRST_POWER, 0.0, POINTS - 1.0)
    across = np.clip(before * (CURVES - 1), 0.0, CURVES - 1.0)
    place, curve = np.minimum(along.astype(np.intp), POINTS - 2), np.minimum(across.astype(np.intp), CURVES - 2)
    along, across = along - place, across - curve
    one = curves[curve, place] * (1 - along) + curves[curve, place + 1] * along
    other = curves[curve + 1, place] * (1 - along) + curves[curve + 1, place + 1] * along
    left: Floats = one * (1 - across) + other * across
    return left


def under_limit(tariff: Tariff, believed: StepPrices, window: Window) -> Tariff:
    """The same work draws less under a power limit that binds, and steps with prompt tokens reach it first: what the
    limit takes off a step of either kind is taken off all its terms. design.md's cap layer, by the model's own word,
    for the window's mean decode step and for steps with prompts of each length.

    Asked about are typical steps and not the window as it is: what an edge cut off it would be taken for a limit's.
    """
    work, limit = window.seen, window.limit_watts
    if work.steps <= 0 or limit is None:
        return tariff
    import numpy as np  # there is a model, so it is loaded already

    from scheduler.energy.model.equations import Limits, forward, left_of_steps

    time, energy, prompt_seconds, idle_watts, cap = believed[:5]
    values = np.array([[*time, *energy, prompt_seconds, idle_watts, *cap]])  # in the order of NAMES
    steps = max(work.steps / work.prompts, 1.0) if work.prompts > 0.5 else STEPS_BETWEEN
    decode = work * (steps / work.steps)
    decode = Work(steps, decode[1], decode[2], decode[3])
    free = tariff._replace(decode_left=1.0, prefill_left=1.0, prefill_curve=())
    whole = price(free, decode).total
    if whole <= 0:
        return tariff
    limited = float(forward(values, decode, Limits(limit, limit)).above_idle_joules[0])
    tokens = 2.0 ** np.arange(FIRST_POWER, FIRST_POWER + POINTS)
    some = work.prompts > 0.5 and work.prefill_tokens > 0
    pairs = tokens * (work.attention_pairs / work.prefill_tokens) if some else tokens * tokens / 2
    prompts = np.maximum(tokens * (work.prompts / work.prefill_tokens), 1.0) if some else np.ones(POINTS)
    prefill = np.tile(tokens, CURVES), np.tile(pairs, CURVES), np.tile(prompts, CURVES)
    before = np.repeat(np.linspace(0.0, 1.0, CURVES), POINTS)
    curve = np.maximum(left_of_steps(values, decode * (1 / steps), prefill, before, limit), LEAST_LEFT)
    tariff = tariff._replace(decode_left=_share(limited, whole))
    if curve.min() > 0.999:
        return tariff
    tariff = tariff._replace(prefill_curve=tuple(curve.tolist()))
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


def limited_share(tariff: Tariff, window: Window) -> float | None:
    """What the limit leaves of the window's prompts, over what it would if each came alone. None: there are none."""
    calls = window.calls
    if not tariff.prefill_curve or window.work.prefill_tokens <= 0:
        return None
    import numpy as np  # there are windows, so it is loaded already

    tokens = calls.work[:, 4]
    alone = float((tokens * all_left_of(tariff, tokens, 0.0 * tokens)).sum())
    in_steps = np.maximum(calls.step_tokens, tokens)
    return float((tokens * all_left_of(tariff, in_steps, calls.step_before)).sum()) / alone


def _mean_left(tariff: Tariff, window: Window) -> float:
    """Of the window's prompts together."""
    work = window.calls.work + window.calls.correction
    computed = work[:, 4] > 0
    tokens = work[computed, 4]
    joules = tariff.prefill_token * tokens + tariff.attention_pair * work[computed, 5]
    whole = float(joules.sum())
    import numpy as np  # there are windows, so it is loaded already

    in_steps = np.maximum(window.calls.step_tokens[computed], tokens)
    left = all_left_of(tariff, in_steps, window.calls.step_before[computed])
    return float((joules * left).sum()) / whole if whole > 0 else 1.0


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, LEAST_LEFT), 1.0) if whole > 0 else 1.0
