"""What do work and prices make? The two equations of design.md and the cap layer over them, for many prices at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.model.filter import MOST, Filter
from scheduler.energy.model.prior import CapPrior, Prices
from scheduler.energy.model.steps import BLUR_LEAST, FLAT, LINEAR, TINY, WIDTH, Spread, StepPrices

if TYPE_CHECKING:
    import numpy.typing as npt

    from scheduler.energy.model.prior import Prior
    from scheduler.energy.work import Work

    Floats = npt.NDArray[np.float64]

# Places in the vector of coefficients.
TIME = slice(0, 6)
ENERGY = slice(6, 12)
PROMPT, IDLE, ONSET, DECODE_EXPONENT, PREFILL_EXPONENT, DRAW, AVERAGE = range(12, 19)
CAP = slice(14, 19)
SIZE = 19
NAMES = (
    *(f"time.{name}" for name in Prices._fields),
    *(f"energy.{name}" for name in Prices._fields),
    "time.prompt",
    "idle_watts",
    *(f"cap.{name}" for name in CapPrior._fields),
)
UNITS = (
    *(f"s/{name}" for name in Prices._fields),
    *(f"J/{name}" for name in Prices._fields),
    "s/prompt",
    "W",
    *("s" if name == "average_seconds" else "1" for name in CapPrior._fields),
)
STEP, PREFILL_TOKEN = Prices._fields.index("step"), Prices._fields.index("prefill_token")
IDLE_LEAST = 0.05
"""Of the prior: no card that is on draws nothing."""
PRICE_LEAST = 0.1
"""Of the prior, for the time and energy of a step and of a prompt token: no model does its work for nothing. Without
this floor time prices run away to 0 under a cap: what is over the limit takes onset·energy/limit at an exponent near 1,
whatever its time without the limit is, so nothing there holds them."""
AVERAGE_LEAST = 0.25
"""Of the prior, for how long the limiter's average takes. Where nearly all that is drawn is the limit, prices that are
still to be learned would be explained by a limiter without any inertia."""
MOST_WATTS = 2.5
"""Times the highest demand of any kind of work by the prior, whose energy may be 30 % too low and time as much too
high."""


def new_filter(prior: Prior) -> Filter:
    """What is believed before anything was seen."""
    values, errors = prior_values(prior)
    low, high = np.zeros(SIZE), np.full(SIZE, MOST)
    low[IDLE] = IDLE_LEAST
    for prices in (TIME, ENERGY):
        low[prices.start + STEP] = low[prices.start + PREFILL_TOKEN] = PRICE_LEAST
    # Every card that was measured lies far within: memory-bound work loses clock first. Power settles below the limit,
    # and bursts that the limiter is too slow for may carry its mean a little over.
    for place, least, most in (
        (ONSET, 0.8, 1.0), (DECODE_EXPONENT, 0.4, 1.1), (PREFILL_EXPONENT, 0.4, 1.1), (DRAW, 0.95, 1.05),
        (AVERAGE, AVERAGE_LEAST * float(values[AVERAGE]), 0.3),
    ):  # fmt: skip
        low[place], high[place] = min(1.0, least / values[place]), max(1.0, most / values[place])
    return Filter(values, errors, (low, high))


def prior_values(prior: Prior) -> tuple[Floats, Floats]:
    """(coefficients, their standard errors), both of shape (SIZE,), in the order of NAMES."""
    values = np.array(
        [*prior.time, *prior.energy, prior.prompt_seconds, prior.idle_watts, *prior.cap], dtype=np.float64
    )
    relative = np.empty(SIZE)
    relative[TIME] = prior.time_uncertainty
    relative[PROMPT] = max(1.0, prior.time_uncertainty)
    relative[ENERGY] = prior.energy_uncertainty
    relative[IDLE] = prior.idle_uncertainty
    relative[CAP] = prior.cap_uncertainty
    relative[DRAW] = min(prior.cap_uncertainty, 0.01)  # 0.989 to 0.996 on every card that was measured
    return values, values * relative


def most_watts(prior: Prior) -> float:
    """More than this no work can draw, whatever is believed: watts of all GPUs together."""
    kinds = (STEP, Prices._fields.index("context_token"), PREFILL_TOKEN, Prices._fields.index("attention_pair"))
    return float(MOST_WATTS * (prior.idle_watts + max(prior.energy[kind] / prior.time[kind] for kind in kinds)))


class Forward(NamedTuple):
    """Of a window, for each of n sets of coefficients: shape (n,) each."""

    busy_seconds: Floats
    above_idle_joules: Floats
    """Beyond idle power, under the cap."""
    binding: Floats
    """Share of the busy time in which the cap binds."""


class Limits(NamedTuple):
    """Power limits in watts on the two kinds of step: decode alone, and with prompt tokens. None = none."""

    decode: float | None
    prefill: float | None


def forward(coefficients: Floats, work: Work, limits: Limits, blur: float = 0.0, most: float = float("inf")) -> Forward:
    """Time and energy of work under power limits. `coefficients` has the shape (n, SIZE).

    A limit acts on a step and not on a window, and a step with prompt tokens may draw twice what a decode step draws.
    So the window is taken for two kinds of step: `prompts` of them with all of the prefill and their part of the
    decoding, the rest with decoding alone.

    Nor does it act at once: a prefill that lasts less than the limiter's average takes to get there is not held back.
    The average that a step with prompt tokens finds is what the work says of it, else its mean demand. Decoding lasts
    long, and what comes before it draws more, so it feels all of the limit.

    `blur`: relative standard error of the demand. Where it is not known on which side of the limit the demand lies, its
    mean over both sides is taken: else the model would be sure of what follows from a belief that it is not sure of.
    `most`: watts that no demand can be over.
    """
    c = coefficients
    decode, prefill = np.array(work[:4]), np.array(work[4:6])
    decode_seconds, decode_joules = c[:, 0:4] @ decode, c[:, 6:10] @ decode
    prefill_seconds = c[:, 4:6] @ prefill + c[:, PROMPT] * work.prompts
    prefill_joules = c[:, 10:12] @ prefill
    mixed, longer, late = prompt_steps_of(work)
    alone = 1 - mixed
    above = np.maximum(most - c[:, IDLE], 0.0)
    pure_seconds = alone * decode_seconds
    pure_joules = np.minimum(alone * decode_joules, above * np.maximum(pure_seconds, TINY))
    pure = _under(c, pure_seconds, pure_joules, c[:, DECODE_EXPONENT], limits.decode, blur)
    seconds = mixed * decode_seconds + prefill_seconds
    joules = np.minimum(mixed * decode_joules + prefill_joules, above * np.maximum(seconds, TINY))
    share = prefill_seconds / np.maximum(seconds, TINY)
    exponent = c[:, DECODE_EXPONENT] * (1 - share) + c[:, PREFILL_EXPONENT] * share
    burst = None
    if limits.prefill is not None:
        if late is None:
            before = (joules + pure_joules) / np.maximum(seconds + pure_seconds, TINY)
        else:
            base = pure_joules / np.maximum(pure_seconds, TINY)
            before = base + late * (joules / np.maximum(seconds, TINY) - base)
        burst = _Burst(longer * seconds / max(mixed * work.steps, 1.0), c[:, IDLE] + before)
    both = _under(c, seconds, joules, exponent, limits.prefill, blur, burst)
    busy = pure[0] + both[0]
    return Forward(busy, pure[1] + both[1], (pure[2] + both[2]) / np.maximum(busy, TINY))


def prompt_steps_of(work: Work) -> tuple[float, float, float | None]:
    """(share of the steps that have prompt tokens, how much longer the one is that a prompt token is in than the mean
    of these, what came before it from 0 to 1; None: not known).

    Where nothing is known, prompts fall into steps at random, several into some of them, and a step that is none of
    theirs decodes something.
    """
    steps, known, tokens = work.steps, work.prompt_steps, work.prefill_tokens
    if known > 0 and tokens > 0 and steps > 0:
        longer = max(work.crowded_tokens * known / tokens**2, 1.0)
        return min(known / steps, 1.0), longer, min(max(work.late_tokens / tokens, 0.0), 1.0)
    if steps <= 1:
        return (1.0 if work.prompts or not steps else 0.0), 1.0, None
    free = min((1 - 1 / steps) ** work.prompts, work.decode_tokens / steps)
    return float(1 - free), 1.0, None


def left_of_steps(
    coefficients: Floats, decode: Work, prefill: tuple[Floats, Floats, Floats], before: Floats, limit_watts: float
) -> Floats:  # fmt: skip
    """Share of their joules above idle that a limit leaves of n steps with prompt tokens. `coefficients`: (1, SIZE).

    `decode`: what one of them decodes; `prefill`: tokens, attention pairs and prompts in each, (n,); `before`: what the
    limiter's average was when each began, from 0, the demand of decoding alone, to 1, the step's own.
    """
    c = coefficients
    features, (tokens, pairs, prompts) = np.array(decode[:4]), prefill
    own_seconds = c[0, 4] * tokens + c[0, 5] * pairs + c[0, PROMPT] * prompts
    decode_seconds, decode_joules = float((c[:, 0:4] @ features)[0]), float((c[:, 6:10] @ features)[0])
    seconds = np.maximum(decode_seconds + own_seconds, TINY)
    joules = np.maximum(decode_joules + c[0, 10] * tokens + c[0, 11] * pairs, TINY)
    share = own_seconds / seconds
    exponent = c[:, DECODE_EXPONENT] * (1 - share) + c[:, PREFILL_EXPONENT] * share
    base = c[:, IDLE] + decode_joules / max(decode_seconds, TINY)
    felt = base + before * np.maximum(c[:, IDLE] + joules / seconds - base, 0.0)
    limited: Floats = _under(c, seconds, joules, exponent, limit_watts, 0.0, _Burst(seconds, felt))[1]
    left: Floats = np.minimum(limited / joules, 1.0)
    return left


class _Burst(NamedTuple):
    """Steps that the limiter may be too slow for."""

    seconds: Floats
    """Each of them, without a limit."""
    before_watts: Floats
    """The average demand when they begin."""


def _under(
    c: Floats, seconds: Floats, joules: Floats, exponent: Floats, limit_watts: float | None, blur: float,
    burst: _Burst | None = None,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """Steps of one kind under a limit: (seconds, joules above idle, seconds in which it binds)."""
    if limit_watts is None:
        return seconds, joules, np.zeros_like(seconds)
    idle = c[:, IDLE]
    demand = idle + joules / np.maximum(seconds, TINY)
    usual = max(float(demand[0]), 1.0)
    spread = max(blur, BLUR_LEAST) * usual
    held = np.maximum(c[:, DRAW] * limit_watts, idle)
    over, binding = _positive_part((demand - held) / spread)
    slow, _ = _positive_part((c[:, ONSET] * demand / limit_watts - 1) * (usual / spread))
    slowdown = (1 + slow * spread / usual) ** exponent
    drawn = np.maximum(demand - over * spread - idle, 0.0)  # above idle, in so far as the limit is felt
    if burst is None:
        slowed = seconds * slowdown
        return slowed, drawn * slowed, binding * slowed
    felt = _felt(burst, demand, np.maximum(over * spread, 1e-6 * usual), c[:, AVERAGE])
    held_seconds, free_seconds = seconds * felt * slowdown, seconds * (1 - felt)
    above = drawn * held_seconds + (demand - idle) * free_seconds
    return held_seconds + free_seconds, above, binding * held_seconds


def _felt(burst: _Burst, demand: Floats, over: Floats, average_seconds: Floats) -> Floats:
    """How much of a limit steps feel, 0 to 1: the mean over them of (average − held) / (demand − held) where that is
    positive, `over` being demand − held and the average moving exponentially from what it was to the demand."""
    constant = np.maximum(average_seconds, 1e-6)
    gap = np.maximum(demand - burst.before_watts, 0.0)
    lasts = np.maximum(burst.seconds, TINY)
    left = np.maximum(lasts - constant * np.log(np.maximum(gap / over, 1.0)), 0.0)
    missing = np.minimum(gap / over, 1.0) * constant * -np.expm1(-left / constant)
    felt: Floats = np.clip((left - missing) / lasts, 0.0, 1.0)
    return felt


def _positive_part(z: Floats) -> tuple[Floats, Floats]:
    """(E max(0, z + N), P(z + N > 0)) for a standard normal N, which is taken for a logistic one of like width: it
    needs no error function, and is as smooth."""
    scaled = np.clip(z / WIDTH, -FLAT, FLAT)
    return np.where(z > LINEAR, z, WIDTH * np.log1p(np.exp(scaled))), 1 / (1 + np.exp(-scaled))


def jacobian(
    values: Floats, scale: Floats, work: Work, limits: Limits, blur: float, most: float
) -> tuple[Forward, Floats]:
    """(the forward model at `values`, d(busy seconds, joules above idle)/d(values / scale) of shape (2, SIZE)).

    By differences, over all coefficients in one call: 0.1 % of the prior is fine enough for every bend.
    """
    step = 1e-3
    shifted = np.vstack([values, values + np.diag(step * scale)])
    result = forward(shifted, work, limits, blur, most)
    seconds, joules = result.busy_seconds, result.above_idle_joules
    slopes = np.vstack([(seconds[1:] - seconds[0]) / step, (joules[1:] - joules[0]) / step])
    return Forward(seconds[:1], joules[:1], result.binding[:1]), slopes


def demand_error(values: Floats, scale: Floats, covariance: Floats, work: Work) -> float:
    """Relative standard error of the power that work demands without a limit: of energy over time, both linear."""
    decode_prefill = np.array([*work[:6]])
    seconds = np.zeros(SIZE)
    seconds[TIME], seconds[PROMPT] = decode_prefill * scale[TIME], work.prompts * scale[PROMPT]
    joules = np.zeros(SIZE)
    joules[ENERGY] = decode_prefill * scale[ENERGY]
    mean = values / scale
    total_seconds, total_joules = float(seconds @ mean), float(joules @ mean)
    if total_seconds <= TINY or total_joules <= TINY:
        return 0.0
    slopes = joules / total_joules - seconds / total_seconds
    return float(np.sqrt(max(float(slopes @ covariance @ slopes), 0.0)))


def step_prices(values: Floats, scale: Floats, covariance: Floats, most: float) -> StepPrices:
    """The coefficients as plain floats, with what `demand_error` makes of a decode step's three features."""
    of_time = covariance[TIME, TIME] * np.outer(scale[TIME], scale[TIME])
    of_energy = covariance[ENERGY, ENERGY] * np.outer(scale[ENERGY], scale[ENERGY])
    of_both = covariance[TIME, ENERGY] * np.outer(scale[TIME], scale[ENERGY])
    numbers = [float(value) for value in values]
    return StepPrices(
        Prices(*numbers[TIME]), Prices(*numbers[ENERGY]), numbers[PROMPT], numbers[IDLE], CapPrior(*numbers[CAP]),
        most, _spread(of_time), _spread((of_both + of_both.T) / 2), _spread(of_energy),
    )  # fmt: skip


def _spread(of: Floats) -> Spread:
    places = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    return Spread(*(float(of[place]) for place in places))
