"""What do work and prices make? The two equations of design.md and the cap layer over them, for many prices at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.model.prior import CapPrior, Prices

if TYPE_CHECKING:
    import numpy.typing as npt

    from scheduler.energy.model.prior import Prior
    from scheduler.energy.work import Work

    Floats = npt.NDArray[np.float64]

# Places in the vector of coefficients.
TIME = slice(0, 6)
ENERGY = slice(6, 12)
PROMPT, IDLE, ONSET, DECODE_EXPONENT, PREFILL_EXPONENT, DRAW = range(12, 18)
CAP = slice(14, 18)
SIZE = 18
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
    *("1" for _ in CapPrior._fields),
)
TINY = 1e-12


def prior_values(prior: Prior) -> tuple[Floats, Floats]:
    """(coefficients, their standard errors), both of shape (SIZE,), in the order of NAMES."""
    values = np.array(
        [*prior.time, *prior.energy, prior.prompt_seconds, prior.idle_watts, *prior.cap], dtype=np.float64
    )
    relative = np.empty(SIZE)
    relative[TIME] = relative[PROMPT] = prior.time_uncertainty
    relative[ENERGY] = prior.energy_uncertainty
    relative[IDLE] = prior.idle_uncertainty
    relative[CAP] = prior.cap_uncertainty
    relative[DRAW] = min(prior.cap_uncertainty, 0.01)  # 0.989 to 0.996 on every card that was measured
    return values, values * relative


class Forward(NamedTuple):
    """Of a window, for each of n sets of coefficients: shape (n,) each."""

    busy_seconds: Floats
    above_idle_joules: Floats
    """Beyond idle power, under the cap."""
    binding: Floats
    """Share of the busy time in which the cap binds."""


def forward(coefficients: Floats, work: Work, limit_watts: float | None) -> Forward:
    """Time and energy of work under a power limit (None = none). `coefficients` has the shape (n, SIZE).

    A limit acts on a step and not on a window, and a step with prompt tokens may draw twice what a decode step draws.
    So the window is taken for two kinds of step: `prompts` of them with all of the prefill and their part of the
    decoding, the rest with decoding alone.
    """
    c = coefficients
    decode = np.array(work[:4])
    prefill = np.array(work[4:6])
    decode_seconds, decode_joules = c[:, 0:4] @ decode, c[:, 6:10] @ decode
    prefill_seconds = c[:, 4:6] @ prefill + c[:, PROMPT] * work.prompts
    prefill_joules = c[:, 10:12] @ prefill
    if limit_watts is None:
        busy = decode_seconds + prefill_seconds
        return Forward(busy, decode_joules + prefill_joules, np.zeros_like(busy))
    mixed = min(1.0, work.prompts / work.steps) if work.steps > 0 else 1.0
    pure = _under(c, (1 - mixed) * decode_seconds, (1 - mixed) * decode_joules, c[:, DECODE_EXPONENT], limit_watts)
    seconds, joules = mixed * decode_seconds + prefill_seconds, mixed * decode_joules + prefill_joules
    share = prefill_seconds / np.maximum(seconds, TINY)
    exponent = c[:, DECODE_EXPONENT] * (1 - share) + c[:, PREFILL_EXPONENT] * share
    both = _under(c, seconds, joules, exponent, limit_watts)
    busy = pure[0] + both[0]
    return Forward(busy, pure[1] + both[1], (pure[2] + both[2]) / np.maximum(busy, TINY))


def _under(
    c: Floats, seconds: Floats, joules: Floats, exponent: Floats, limit_watts: float
) -> tuple[Floats, Floats, Floats]:
    """Steps of one kind under a limit: (seconds, joules above idle, seconds in which it binds)."""
    idle = c[:, IDLE]
    demand = idle + joules / np.maximum(seconds, TINY)
    slowed = seconds * np.maximum(1.0, c[:, ONSET] * demand / limit_watts) ** exponent
    draw = np.minimum(demand, np.maximum(c[:, DRAW] * limit_watts, idle))
    return slowed, (draw - idle) * slowed, np.where(demand > c[:, DRAW] * limit_watts, slowed, 0.0)


def jacobian(values: Floats, scale: Floats, work: Work, limit_watts: float | None) -> tuple[Forward, Floats]:
    """(the forward model at `values`, d(busy seconds, joules above idle)/d(values / scale) of shape (2, SIZE)).

    By differences, over all coefficients in one call: the equations have kinks, and a step of 0.1 % of the prior
    looks over the finest of them.
    """
    step = 1e-3
    shifted = np.vstack([values, values + np.diag(step * scale)])
    result = forward(shifted, work, limit_watts)
    seconds, joules = result.busy_seconds, result.above_idle_joules
    slopes = np.vstack([(seconds[1:] - seconds[0]) / step, (joules[1:] - joules[0]) / step])
    return Forward(seconds[:1], joules[:1], result.binding[:1]), slopes
