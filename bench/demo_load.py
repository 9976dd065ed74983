"""What is played in the demo? A small mix of workflows at random times, all from a seed."""

from __future__ import annotations

import random

from bench.load.isolated import Alone
from workloads.catalogue import MIX as COMPOSITE
from workloads.catalogue import Workload
from workloads.player import Arrival

MIX = {"chat": 0.45, "copilot": 0.25, "chain": 0.15, "map-reduce": 0.15}
WORKLOAD = Workload(COMPOSITE, preset="small", mix=MIX)
"""Cut down to what two cores tokenize at several times real time beside all else."""
WORKFLOWS_PER_SECOND = 1.2
"""Simulated seconds."""
STRETCH = 4.0
"""Each workflow has so many times as long as it would take alone: its users wait for it, and not for every second."""
TAIL_SECONDS, TAIL_SHARE = 10.0, 0.25
"""At the end of the horizon no workflow begins, for so long (simulated) but no larger share of it."""


def arrivals(seed: int, horizon_seconds: float, speed: float, calibration: str) -> list[Arrival]:
    """The load: workflows of the mix at random times of a horizon in simulated seconds, the first one at once."""
    rng = random.Random(seed)
    alone = Alone(calibration)
    last = horizon_seconds - min(TAIL_SECONDS, TAIL_SHARE * horizon_seconds)
    found: list[Arrival] = []
    at = 0.0
    for workflow in WORKLOAD.stream(rng, prefix=f"demo-{seed}"):
        if at >= last:
            break
        found.append(Arrival(at / speed, workflow, STRETCH * alone.seconds(workflow) / speed))
        at += rng.expovariate(WORKFLOWS_PER_SECOND)
    return found
