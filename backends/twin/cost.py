"""How long does an engine step take, and how much power does it draw? The equations of design.md and the cap layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from backends.twin.calibration import Calibration, CapLayer, Terms


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

    def _value(self, terms: Terms, batch: Batch) -> tuple[float, float]:
        """All of it, and the part that is prefill's."""
        decode, context, repeated, prefill, pairs = batch
        own = terms.prefill_token * prefill + terms.attention_pair * pairs
        value = terms.step + terms.decode_token * decode + own
        value += terms.context_token * context + terms.repeated_token * repeated
        if terms.expert_step:
            value += terms.expert_step * (1 - self._unused_share ** (decode + prefill))
        return value, own

    def step(self, batch: Batch, limit_watts: float) -> StepCost:
        """The cost of one step under the limit that is in force."""
        calibration = self.calibration
        seconds, prefill_seconds = self._value(calibration.time, batch)
        if batch.prefill:
            seconds = max(seconds, calibration.engine.prompt_step_seconds)
        joules, _ = self._value(calibration.energy, batch)
        demand = self.idle_watts + joules / seconds
        cap = calibration.cap
        share = prefill_seconds / seconds
        exponent = cap.decode_exponent * (1 - share) + cap.prefill_exponent * share
        slowdown, watts = throttled(cap, exponent, demand, limit_watts)
        # Power falls with the clock; how voltage falls along is not modelled, so the clock is an indication only.
        clock = calibration.card.sm_clock_max_mhz * watts / demand
        return StepCost(seconds * slowdown, watts, clock, demand)


def throttled(cap: CapLayer, exponent: float, demand_watts: float, limit_watts: float) -> tuple[float, float]:
    """How many times longer work of this demand takes under a power limit, and the power that it draws then."""
    slowdown = max(1.0, cap.onset * demand_watts / limit_watts) ** exponent
    return slowdown, min(demand_watts, cap.draw * limit_watts)
