"""Which SM clock does to an engine what a cap does to it? The second actuator, by the cap layer's own relation.

A power limit works by lowering the clock. The cap layer (design.md) says: an engine of demand P under a limit L draws
min(P, L), and power falls in proportion to the clock (how voltage falls along is not modelled, as in the twin). So the
clock that stands for a cap is f = f_max · min(1, L / P), with the demand of the load as it is. Where voltage falls too,
the same clock draws less than L.
A limit acts only on steps that would draw more; a clock acts on all of them alike. With prefill that draws twice what
decoding does, a clock is therefore the slower of the two for the same mean power.
"""

from __future__ import annotations

from math import ceil

STEP_MHZ = 15.0
"""SM clocks come in steps of this on the cards that were seen; the next one up is asked for."""
LEAST_SHARE = 0.3
"""Of the highest clock: below it no cap was measured."""


def clock_for(watts: float, demand_watts: float, highest_mhz: float) -> float | None:
    """The upper bound of the SM clock that stands for a limit; None: the limit would not bind, so none is needed.

    `watts` and `demand_watts` are both of one GPU, or both of all. ValueError unless all are above 0.
    """
    if not (watts > 0 and demand_watts > 0 and highest_mhz > 0):
        raise ValueError("watts, demand and clock must be above 0")
    if watts >= demand_watts:
        return None
    share = max(watts / demand_watts, LEAST_SHARE)
    return min(ceil(share * highest_mhz / STEP_MHZ) * STEP_MHZ, highest_mhz)
