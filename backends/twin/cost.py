"""How long does an engine step take, and how much power does it draw? The equations of design.md and the cap layer."""

from __future__ import annotations

from math import expm1, log
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from backends.twin.calibration import Calibration, CapLayer, Terms

FULL_PRICE_SEQUENCES = 3.0
"""As if so many of the sequences that decode read a shared prefix at memory's price: few do not fill the card, so that
their time is that of each multiprocessor's own reading, wherever it reads from. Memory's energy is saved all the same.
"""


class Batch(NamedTuple):
    """What one engine step computes."""

    decode: int = 0
    """Sequences that decode one token each."""
    context: float = 0.0
    """Distinct tokens of KV cache that are read."""
    repeated: float = 0.0
    """Tokens that further sequences with the same prefix read again."""
    prefill: int = 0
    """Prompt tokens computed anew."""
    pairs: float = 0.0
    """Σ over prefill chunks of new tokens × mean number of tokens before each."""


class StepCost(NamedTuple):
    """One step under a power limit. Energy includes idle power during the step."""

    seconds: float
    watts: float
    sm_clock_mhz: float
    demand_watts: float
    """What it would draw without any limit."""


class CostModel:
    """Batch and power limit in, time and power out. Limits and watts are sums over the engine's cards."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        card = calibration.card
        self.idle_watts = card.idle_watts
        self.limit_watts = card.limit_watts_default * card.gpus
        experts = calibration.experts
        self._unused_share = 1 - experts.active / experts.total if experts is not None else 0.0

    def _value(self, terms: Terms, batch: Batch, cheaper: float = 1.0) -> tuple[float, float]:
        """All of it, and the part that is prefill's. `cheaper`: how much of what the L2 cache can save is saved."""
        decode, context, repeated, prefill, pairs = batch
        own = terms.prefill_token * prefill + terms.attention_pair * pairs
        value = terms.step + terms.decode_token * decode + own
        value += terms.context_token * (context + repeated)
        value -= (terms.context_token - terms.repeated_token) * repeated * cheaper
        if terms.expert_step:
            value += terms.expert_step * (1 - self._unused_share ** (decode + prefill))
        return value, own

    def step(
        self,
        batch: Batch,
        limit_watts: float,
        *,
        least_seconds: float | None = None,
        average_watts: float | None = None,
    ) -> StepCost:
        """The cost of one step under the limit that is in force.

        `least_seconds`: how long it takes at least, because its host is not ready before; None: as if nothing of that
        overlapped with a step before. `average_watts`: what the card felt on average when it began; None: the same.
        """
        calibration = self.calibration
        cheaper = max(0.0, 1 - FULL_PRICE_SEQUENCES / batch.decode) if batch.repeated and batch.decode else 1.0
        seconds, prefill_seconds = self._value(calibration.time, batch, cheaper)
        if batch.prefill:
            least = calibration.engine.prompt_step_seconds if least_seconds is None else least_seconds
            seconds = max(seconds, least)
        joules, _ = self._value(calibration.energy, batch)
        demand = self.idle_watts + joules / seconds
        cap = calibration.cap
        share = prefill_seconds / seconds
        exponent = cap.decode_exponent * (1 - share) + cap.prefill_exponent * share
        slowdown, watts = throttled(cap, exponent, demand, limit_watts)
        if average_watts is not None and watts < demand:
            felt = felt_share(cap, demand, limit_watts, average_watts, seconds)
            slower = 1 + felt * (slowdown - 1)
            watts = (felt * slowdown * watts + (1 - felt) * demand) / slower
            slowdown = slower
        # Power falls with the clock; how voltage falls along is not modelled, so the clock is an indication only.
        clock = min(1.0, watts / demand) * calibration.card.sm_clock_max_mhz
        return StepCost(seconds * slowdown, watts, clock, demand)


def throttled(cap: CapLayer, exponent: float, demand_watts: float, limit_watts: float) -> tuple[float, float]:
    """How many times longer work of this demand takes under a power limit, and the power that it draws then."""
    slowdown = max(1.0, cap.onset * demand_watts / limit_watts) ** exponent
    return slowdown, min(demand_watts, cap.draw * limit_watts)


def felt_share(cap: CapLayer, demand_watts: float, limit_watts: float, average_watts: float, seconds: float) -> float:
    """How much of a limit work feels that lasts so long without it: 0 nothing yet, 1 all of it.

    The mean over that time of (average - held) / (demand - held) where that is positive, the average moving from
    `average_watts` to the demand, which is over `held` = draw·limit.
    """
    constant = cap.average_seconds
    if not constant:
        return 1.0
    gap = demand_watts - average_watts
    over = demand_watts - cap.draw * limit_watts
    unfelt = constant * log(gap / over) if gap > over else 0.0
    if unfelt >= seconds:
        return 0.0
    left = seconds - unfelt
    missing = min(gap, over) / over * constant * -expm1(-left / constant)
    return min(1.0, max(0.0, (left - missing) / seconds))
