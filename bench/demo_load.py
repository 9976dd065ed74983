"""What is played in the demo? A small mix of workflows at random times, all from a seed."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from workloads.player import Arrival
from workloads.shapes import KINDS, chain, copilot, map_reduce

if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.shapes import WorkflowShape

MIX = {"chat": 0.45, "copilot": 0.25, "chain": 0.15, "map-reduce": 0.15}
SMALL: dict[str, Callable[[str, random.Random], WorkflowShape]] = {
    **KINDS,
    "chain": partial(chain, chunks=(3, 6), chunk_tokens=(256, 768)),
    "map-reduce": partial(map_reduce, chunks=(3, 6), chunk_tokens=(256, 768)),
    "copilot": partial(copilot, system_tokens=1500, query_tokens=(200, 600), output_tokens=(80, 200)),
}
"""The published shapes, cut down to what two cores tokenize at several times real time beside all else."""
WORKFLOWS_PER_SECOND = 1.2
"""Simulated seconds."""
TAIL_SECONDS, TAIL_SHARE = 10.0, 0.25
"""At the end of the horizon no workflow begins, for so long (simulated) but no larger share of it."""


def arrivals(seed: int, horizon_seconds: float, speed: float) -> list[Arrival]:
    """The load: workflows of the mix at random times of a horizon in simulated seconds, the first one at once."""
    rng = random.Random(seed)
    last = horizon_seconds - min(TAIL_SECONDS, TAIL_SHARE * horizon_seconds)
    found: list[Arrival] = []
    at = 0.0
    while at < last:
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        found.append(Arrival(at / speed, SMALL[kind](f"{kind}-{seed}-{len(found) + 1}", rng)))
        at += rng.expovariate(WORKFLOWS_PER_SECOND)
    return found
