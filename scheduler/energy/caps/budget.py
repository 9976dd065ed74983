"""How are so many watts divided over several engines? To whom a watt saves most time, those in need first."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PART = 0.01
"""Of the budget: watts are handed out in so many at a time."""


class Bid(NamedTuple):
    """What an engine would have, and what it loses with less. Watts of each GPU."""

    engine: str
    gpus: int
    least_watts: float
    """It is never given less."""
    wanted_watts: float
    """Its own decision, ≥ `least_watts`: it is never given more."""
    needed_watts: float
    """Below this a promise would break."""
    busy_gpus: Callable[[float], float]
    """GPU-seconds a second that its load takes under a cap: GPUs × busy share × stretch, falling in the watts."""


def divide(budget_watts: float, bids: Sequence[Bid]) -> dict[str, float]:
    """Watts of each GPU, by engine. Their sum over all GPUs is at most the budget, unless the least of all is more
    already: then everybody has the least.

    Greedy, which is best where busy time falls convexly, as the cap layer's does. Ties go to the first by name.
    """
    given = {bid.engine: bid.least_watts for bid in bids}
    left = budget_watts - sum(bid.gpus * bid.least_watts for bid in bids)
    part = PART * budget_watts
    open_bids = sorted(bids, key=lambda bid: bid.engine)
    while left > 0 and open_bids:
        best: tuple[bool, float] | None = None
        chosen = open_bids[0]
        for bid in open_bids:
            at = given[bid.engine]
            more = min(part / bid.gpus, bid.wanted_watts - at)
            gain = (bid.busy_gpus(at) - bid.busy_gpus(at + more)) / (more * bid.gpus) if more > 0 else 0.0
            rank = (at < bid.needed_watts, gain)
            if best is None or rank > best:
                best, chosen = rank, bid
        at = given[chosen.engine]
        more = min(part, left, (chosen.wanted_watts - at) * chosen.gpus)
        given[chosen.engine] = at + more / chosen.gpus
        left -= more
        if chosen.wanted_watts - given[chosen.engine] <= 1e-9 * chosen.wanted_watts:
            open_bids.remove(chosen)
    return given
