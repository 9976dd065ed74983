"""What does an engine's step cost, in seconds and joules? Plain floats, for those who decide often.

Where an engine's energy is modelled, the live model says so; elsewhere its times are those of the calls that finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.desk import EngineDesk
    from scheduler.holding.capslack import Slower

CALL_SECONDS = 0.005
"""Of each call, beside its steps: its way into the engine's first step and the answer's way out."""
LEARNED_UNSEEN = (0.1, 5e-5, 0.012)
"""Seconds a call, a new prompt token, an output token: where somebody else's model of durations is in force."""
STEP_LEAST = 1e-4
"""No step of any engine takes less, whatever was learned."""
DECODE_SHARE, CONTEXT_SHARE = 0.0022, 5.8e-6
"""Of a step's fixed time: one more sequence's, and one more context token's, on an H200 with an 8B model. Taken where
nothing is modelled."""


class StepCosts(NamedTuple):
    """Of the terms of design.md's equations: seconds under the power limit that will be in force, and joules
    without one, above idle power. Joules None: energy is unknown."""

    step_seconds: float
    decode_seconds: float
    """Of each sequence in a step."""
    context_seconds: float
    """Of each token of context that is read."""
    prefill_seconds: float
    """Of each new prompt token."""
    pair_seconds: float
    """Of each pair of a new token and one before it."""
    step_joules: float | None = None
    token_joules: float = 0.0
    context_joules: float = 0.0
    prefill_joules: float = 0.0
    pair_joules: float = 0.0


def costs_of(desk: EngineDesk | None, learned: tuple[float, float, float], slower: Slower) -> StepCosts:
    """An engine's costs as they are believed now. `learned`: seconds a call, a new prompt token, an output token.
    `slower`: what the power limit makes of the steps."""
    model = desk.model if desk is not None else None
    if desk is None or model is None:
        _, prompt, output = learned
        step = max(0.95 * output, STEP_LEAST)
        return StepCosts(step, DECODE_SHARE * step, CONTEXT_SHARE * step, prompt, 0.0)
    prices = model.prices()
    time, energy = prices.time, prices.energy
    return StepCosts(
        max(time.step, STEP_LEAST) * slower.decode,
        time.decode_token * slower.decode,
        time.context_token * slower.decode,
        time.prefill_token * slower.prefill,
        time.attention_pair * slower.prefill,
        energy.step,
        energy.decode_token,
        energy.context_token,
        energy.prefill_token,
        energy.attention_pair,
    )
