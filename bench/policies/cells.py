"""Which traffic are policies compared on? Workloads at three loads each, and what their users were promised."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from bench.load.isolated import Alone
from bench.twin.play import calls_per_workflow
from workloads.shapes import stream

if TYPE_CHECKING:
    from workloads.shapes import WorkflowShape

CALLS_MAX = 65_536
"""In flight at the engine: more than ever come."""
LOADS = {
    "chain": (1.0, 4.0, 12.0),
    "copilot": (0.5, 2.0, 5.0),
    "coding": (0.5, 2.0, 6.0),
    "map-reduce": (1.0, 4.0, 12.0),
    "composite": (1.0, 4.0, 10.0),
}
"""Calls a second: the cells of `hold-or-release`."""
SAMPLE = 500
"""Workflows of which the mean number of calls is taken."""


class Promise(NamedTuple):
    """What the users of a run expect: a class, and a deadline as a multiple of the workflow's isolated time, or in
    seconds."""

    name: str
    workflow_class: str | None = None
    stretch: float | None = None
    seconds: float | None = None


PROMISES = (
    Promise("interactive", "interactive"),
    Promise("1.5x", None, 1.5),
    Promise("3x", None, 3.0),
    Promise("10x", None, 10.0),
    Promise("batch", "batch", None, 3600.0),
)


class Arrival(NamedTuple):
    """A workflow of a cell's traffic."""

    at: float
    workflow: WorkflowShape
    isolated_seconds: float
    """Alone on the engine, whose cache holds what all workflows share."""


class Cell(NamedTuple):
    """A workload at a load."""

    workload: str
    rate: float
    """Calls a second."""

    @property
    def name(self) -> str:
        return f"{self.workload} {self.rate:g}"


CELLS = tuple(Cell(workload, rate) for workload, rates in LOADS.items() for rate in rates)


@cache
def traffic(cell: Cell, seconds: float, seed: int, calibration: str) -> tuple[Arrival, ...]:
    """The workflows that arrive within so many seconds, the same for every policy and promise."""
    rng = random.Random(f"{cell.name} {seed}")
    rate = cell.rate / calls_per_workflow(stream(cell.workload, random.Random(0)), SAMPLE)
    workflows = stream(cell.workload, rng)
    alone = Alone(calibration)
    arrivals = []
    at = rng.expovariate(rate)
    while at < seconds:
        workflow = next(workflows)
        arrivals.append(Arrival(at, workflow, alone.seconds(workflow)))
        at += rng.expovariate(rate)
    return tuple(arrivals)
