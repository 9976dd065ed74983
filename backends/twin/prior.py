"""What should the live energy model believe before it has seen anything? A calibration's numbers as a prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.model.prior import CapPrior, Prices, Prior

if TYPE_CHECKING:
    from backends.twin.calibration import Calibration, Terms

UNCERTAINTY_LEAST = 0.1
"""Cards of one kind differ by so much: two H200s drew 487 and 454 W for the same work (docs/twin-accuracy.md)."""
COEFFICIENT_FACTOR = 1.5
"""A calibration's uncertainty is that of a sum of terms; each term alone is known less well."""
IDLE_UNCERTAINTY = 0.15
CAP_UNCERTAINTY = 0.15
PROMPT_SECONDS_LEAST = 1e-3
AVERAGE_SECONDS = CapPrior().average_seconds
"""Of a card whose calibration does not say how long its limiter takes: none acts at once."""
SMALLEST = 1e-15
"""A price of 0 could never be learned: it is this much instead."""


def prior_of(calibration: Calibration) -> Prior:
    """The prior of an engine that this calibration (measured, or a roofline prior) describes, all its cards together.

    The expert term of a mixture of experts goes into the fixed cost of a step, at full use: right for large batches.
    """
    uncertainty, energy_terms, cap = calibration.uncertainty, calibration.energy, calibration.cap
    prompt_seconds = calibration.engine.prompt_step_seconds - calibration.time.step
    return Prior(
        time=_prices(calibration.time),
        energy=_prices(energy_terms),
        idle_watts=calibration.card.idle_watts,
        cap=CapPrior(
            cap.onset,
            max(cap.decode_exponent, 0.05),
            max(cap.prefill_exponent, 0.05),
            cap.draw,
            cap.average_seconds or AVERAGE_SECONDS,
        ),
        prompt_seconds=max(prompt_seconds / 2, PROMPT_SECONDS_LEAST),
        time_uncertainty=max(UNCERTAINTY_LEAST, COEFFICIENT_FACTOR * uncertainty.time),
        energy_uncertainty=max(UNCERTAINTY_LEAST, COEFFICIENT_FACTOR * uncertainty.energy),
        idle_uncertainty=IDLE_UNCERTAINTY,
        cap_uncertainty=CAP_UNCERTAINTY,
        name=calibration.name,
    )


def _prices(terms: Terms) -> Prices:
    return Prices(
        terms.step + terms.expert_step,
        *(
            max(value, SMALLEST)
            for value in (
                terms.decode_token,
                terms.context_token,
                terms.repeated_token,
                terms.prefill_token,
                terms.attention_pair,
            )
        ),
    )
