"""What is played in a repeat? Its workflows, when each begins and what its users are promised: all from the seed."""

from __future__ import annotations

import random
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.load.isolated import Alone
from bench.programs import BenchError
from workloads.played import Arrival
from workloads.trace import TraceFault, arrivals_of, read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.load.spec import Spec
    from workloads.shapes import WorkflowShape
    from workloads.trace import Trace

WARM_UP = 0
"""The number of the repeat that is dropped."""
LOADS_KEPT = 24
"""A characterisation comes back to the loads of its batches when it plays caps."""
OF_A_LOAD = (
    "workload", "preset", "input_scale", "output_scale", "parameters", "mix", "trace", "arrivals", "rate", "cv",
    "swing", "period_seconds", "users", "workflows", "speed", "seconds", "warm_up_seconds", "seed", "calibration",
)  # fmt: skip
_made: dict[tuple[str, int], tuple[list[tuple[float, WorkflowShape]], tuple[float, ...]]] = {}


class Load(NamedTuple):
    """A repeat's play."""

    seed: int
    arrivals: tuple[Arrival, ...]
    isolated_seconds: tuple[float, ...]
    """Of each workflow: alone on the engine, whose cache holds what all workflows share."""
    users: int | None
    think_seconds: float
    arrival_seconds: float | None
    """None: as long as the users take."""

    @property
    def calls(self) -> int:
        """Of all workflows."""
        return sum(len(arrival.workflow.calls) for arrival in self.arrivals)


def load_of(spec: Spec, repeat: int) -> Load:
    """The same for every policy and engine limit: repeat n of one seed always has the same workflows and times. Repeat
    WARM_UP is as long as the warm-up. BenchError where there is nothing to play."""
    warm = repeat == WARM_UP
    seconds = spec.warm_up_seconds if warm else spec.seconds
    key = repr([getattr(spec, name) for name in OF_A_LOAD])
    if (key, repeat) not in _made:
        while len(_made) >= LOADS_KEPT:  # the policies of a command play the same ones, one after the other
            del _made[next(iter(_made))]
        _made[key, repeat] = _make(spec, repeat, seconds)
    found, isolated = _made[key, repeat]
    if not found and not warm:
        raise BenchError(
            f"{spec.name}: no workflow begins within {seconds:g} s: take more --seconds or a higher --rate"
        )
    promise, pattern = spec.promise, spec.pattern
    arrivals = tuple(
        Arrival(at, workflow, promise.deadline_seconds(seconds_alone), promise.workflow_class)
        for (at, workflow), seconds_alone in zip(found, isolated, strict=True)
    )
    users = pattern.users if pattern.kind == "closed" else None
    return Load(spec.seed, arrivals, isolated, users, pattern.think_seconds, None if users is not None else seconds)


def _make(spec: Spec, repeat: int, seconds: float) -> tuple[list[tuple[float, WorkflowShape]], tuple[float, ...]]:
    """(beginning and workflow) each, and isolated times."""
    rng = random.Random(f"{spec.seed} {repeat}")
    pattern, warm = spec.pattern, repeat == WARM_UP
    prefix = f"{'warm' if warm else f'r{repeat}'}-{spec.seed}"
    if spec.workload == "trace":
        found = _traced(spec, seconds, prefix)
    elif pattern.kind == "closed":
        count = min(pattern.users, pattern.count) if warm else pattern.count
        found = [(0.0, workflow) for workflow in islice(spec.generator.stream(rng, prefix), count)]
    else:
        per_second = spec.rate / spec.generator.calls_per_workflow()
        times = pattern.times(random.Random(f"times {spec.seed} {repeat}"), seconds, per_second)
        found = list(zip(times, spec.generator.stream(rng, prefix), strict=False))
    alone = Alone(spec.calibration)
    return found, tuple(alone.seconds(workflow) for _, workflow in found)


def _traced(spec: Spec, seconds: float, prefix: str) -> list[tuple[float, WorkflowShape]]:
    """A trace is played as it is: repeats differ in nothing but the engine's and the clock's chances."""
    assert spec.trace is not None
    found: Iterator[tuple[float, WorkflowShape]] = arrivals_of(trace_of(spec.trace), prefix)
    return [(at / spec.speed, workflow) for at, workflow in found if at / spec.speed < seconds]


@cache
def trace_of(path: str) -> Trace:
    """Read once. BenchError."""
    try:
        return read_trace(Path(path))
    except TraceFault as fault:
        raise BenchError(str(fault)) from None
