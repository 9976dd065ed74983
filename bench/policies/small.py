"""`joulegate-bench policies-small`: `joule` on small random instances beside the least that could be, found by search.

Before each instance comes a while of traffic like it, so that `joule` knows how often workflows come; it does not know
which. The optimum knows all. Both are played on the twin, over the same time.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.load.isolated import Alone
from bench.policies.cells import CALLS_MAX, Promise
from bench.policies.lab import LIMITS, Declaring
from bench.policies.optimum import Found, Job, Search
from bench.programs import BenchError
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import EnergyPrior, EngineSpec
from scheduler.policies.base import Choice, Policy
from workloads.shapes import CallShape, Part, WorkflowShape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from scheduler.state import EngineState, ReadyCalls

CALIBRATION = "h200-llama-3.1-8b"
CALLS_MOST = 8
INSTANCES = 200
BEFORE, BEFORE_SECONDS = 16, 60.0
"""Workflows before each instance, and until when they all are over."""
SPAN_SECONDS = 6.0
"""In which the instance's workflows come."""
OUTPUT_TOKENS, PROMPT_TOKENS, STRETCHES = (40, 300), (50, 800), (1.5, 6.0)
SHAPES = ("single", "single", "chain", "map-reduce")
SAFE_SECONDS = (0.0, 0.03, 0.1)
"""The affine steps are not quite the twin's: where a schedule is late there, one with so much to spare is sought."""
AFTER_SECONDS = 1.0
"""So long after the last deadline joules are counted: what is late is to be counted, too."""
RATIO_MOST = 1.10


class Flow(NamedTuple):
    """A workflow of an instance."""

    at: float
    deadline_seconds: float
    shape: WorkflowShape


class Result(NamedTuple):
    """Of one instance; joules with idle power until its last deadline."""

    seed: int
    calls: int
    optimum_joules: float
    passthrough_joules: float
    joule_joules: float
    idle_joules: float
    missed: int
    """Deadlines, by `joule`."""
    proven: bool

    @property
    def ratio(self) -> float:
        return self.joule_joules / self.optimum_joules

    @property
    def ratio_above_idle(self) -> float:
        return (self.joule_joules - self.idle_joules) / (self.optimum_joules - self.idle_joules)


def shape_of(name: str, kind: str, rng: random.Random, calls_most: int) -> WorkflowShape:
    """A small workflow of this kind, with its own prompts."""

    def call(node: str, after: tuple[str, ...]) -> CallShape:
        return CallShape(
            node, after, (Part(f"{name} {node}", rng.randint(*PROMPT_TOKENS)),), rng.randint(*OUTPUT_TOKENS)
        )

    if kind == "chain" and calls_most >= 2:
        names = [f"step-{number}" for number in range(rng.randint(2, min(3, calls_most)))]
        calls = [call(node, tuple(names[place - 1 : place])) for place, node in enumerate(names)]
    elif kind == "map-reduce" and calls_most >= 3:
        maps = [f"map-{number}" for number in range(rng.randint(2, min(3, calls_most - 1)))]
        calls = [*(call(node, ()) for node in maps), call("reduce", tuple(maps))]
    else:
        kind, calls = "single", [call("only", ())]
    return WorkflowShape(name, kind, tuple(calls))


def instance(seed: int) -> list[Flow]:
    """2 to 8 calls in a few workflows; times from the instance's start."""
    rng, alone = random.Random(f"small {seed}"), Alone(CALIBRATION)
    left = rng.randint(2, CALLS_MOST)
    flows: list[Flow] = []
    while left:
        shape = shape_of(f"small-{len(flows)}", rng.choice(SHAPES), rng, left)
        left -= len(shape.calls)
        flows.append(Flow(rng.uniform(0.0, SPAN_SECONDS), rng.uniform(*STRETCHES) * alone.seconds(shape), shape))
    return sorted(flows)


def before(seed: int) -> list[Flow]:
    """Traffic like it, which is over when the instance begins."""
    rng, alone = random.Random(f"before {seed}"), Alone(CALIBRATION)
    flows = []
    for number in range(BEFORE):
        shape = shape_of(f"before-{number}", rng.choice(SHAPES), rng, CALLS_MOST)
        at = rng.uniform(0.0, BEFORE_SECONDS / 2)
        flows.append(Flow(at, min(rng.uniform(*STRETCHES) * alone.seconds(shape), BEFORE_SECONDS / 3), shape))
    return flows


def jobs_of(flows: Sequence[Flow], spare_seconds: float) -> list[Job]:
    """The same for the search."""
    jobs: list[Job] = []
    for flow in flows:
        places = {call.node: len(jobs) + place for place, call in enumerate(flow.shape.calls)}
        for call in flow.shape.calls:
            after = tuple(places[node] for node in call.after)
            deadline = flow.at + flow.deadline_seconds - spare_seconds
            jobs.append(Job(flow.at, deadline, after, call.prompt_tokens, call.output_tokens))
    return jobs


class Scripted(Policy):
    """Each call at the time that a schedule says, the first that can run first."""

    name = "scripted"

    def __init__(self, options: Mapping[str, float]) -> None:
        self.at = options

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """By the call's id."""
        call = min(ready, key=lambda call: (self.at.get(call.arrived.call_id, now), call.sequence))
        at = self.at.get(call.arrived.call_id, now)
        return Choice(call, engines[0]) if at <= now else at


class Outcome(NamedTuple):
    """Of one play of an instance."""

    joules: float
    missed: int


def play(seed: int, flows: Sequence[Flow], policy: str, releases: Mapping[str, float] | None = None) -> Outcome:
    """The instance, after what comes before it, on the twin. `releases`: times of calls, in place of a policy."""
    calibration = calibrations.load(CALIBRATION)
    engine = TwinEngine(calibration)
    config = SchedulerConfig(
        (EngineSpec("twin", CALLS_MAX),), policy, queue_calls=1_000_000, queue_seconds=1e9, workflow_limits=LIMITS
    )
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior("twin", prior_of(calibration), simulated=True), 0.0)
    if releases is not None:
        scheduler.deciding.install(Scripted({call: at + BEFORE_SECONDS for call, at in releases.items()}), 0.0)
    world = World(scheduler, {"twin": engine})
    player = Declaring(world, Promise("own"))
    ends = max(flow.at + flow.deadline_seconds for flow in flows)
    for start, some in ((0.0, before(seed)), (BEFORE_SECONDS, flows)):
        for flow in some:
            world.time.at(start + flow.at, lambda flow=flow: player.declare(flow.shape, flow.deadline_seconds))  # type: ignore[misc]
    world.time.run(BEFORE_SECONDS)
    assert len(player.played) == BEFORE, "the traffic before is over"
    joules = engine.meter.joules
    world.time.run(BEFORE_SECONDS + ends + AFTER_SECONDS)
    assert len(player.played) == BEFORE + len(flows)
    due = {flow.shape.id: BEFORE_SECONDS + flow.at + flow.deadline_seconds for flow in flows}
    late = sum(each.finished_at > due.get(each.workflow.id, each.finished_at) for each in player.played)
    scheduler.validate()
    return Outcome(engine.meter.joules - joules, late)


def optimum(seed: int, flows: Sequence[Flow]) -> tuple[Outcome, Found]:
    """The best schedule that meets every deadline on the twin as well."""
    calls = [f"{flow.shape.id}/{call.node}" for flow in flows for call in flow.shape.calls]
    for spare in SAFE_SECONDS:
        found = Search(jobs_of(flows, spare), calibrations.load(CALIBRATION)).best()
        if found.releases:
            outcome = play(seed, flows, "passthrough", dict(zip(calls, found.releases, strict=True)))
            if not outcome.missed:
                return outcome, found
    return play(seed, flows, "passthrough"), found._replace(proven=False)


def solve(seed: int) -> Result:
    """One instance, whole."""
    flows = instance(seed)
    best, found = optimum(seed, flows)
    joule, base = play(seed, flows, "joule"), play(seed, flows, "passthrough")
    ends = max(flow.at + flow.deadline_seconds for flow in flows) + AFTER_SECONDS
    idle = TwinEngine(calibrations.load(CALIBRATION)).costs.idle_watts * ends
    least = min(best.joules, base.joules, joule.joules if not joule.missed else best.joules)
    calls = sum(len(flow.shape.calls) for flow in flows)
    return Result(seed, calls, least, base.joules, joule.joules, idle, joule.missed, found.proven)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `policies-small`."""
    parser.add_argument("--instances", type=int, default=INSTANCES, help=f"(default: {INSTANCES})")
    parser.add_argument("--seed", type=int, default=1, help="of the first (default: 1)")
    parser.add_argument("--processes", type=int, default=cpu_count() or 1)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all instances as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Solve and print: 0, or 1 if the mean ratio is more than it may be. BenchError for options that cannot be used."""
    if args.instances < 1 or args.processes < 1:
        raise BenchError("--instances and --processes must be above 0")
    results = []
    print(f"{'seed':>6}{'calls':>6}{'optimum J':>11}{'joule J':>9}{'ratio':>7}{'above idle':>12}{'passthrough':>13}")
    with ProcessPoolExecutor(args.processes) as pool:
        for result in pool.map(solve, range(args.seed, args.seed + args.instances)):
            results.append(result)
            print(line(result), flush=True)
    print(summary(results))
    if args.output is not None:
        args.output.write_text(json.dumps([result._asdict() for result in results], indent=1) + "\n")
    return 0 if mean([result.ratio for result in results]) <= RATIO_MOST else 1


def line(result: Result) -> str:
    """An instance as it is printed."""
    notes = f"  {result.missed} late" if result.missed else ""
    notes += "" if result.proven else "  not proven"
    return (
        f"{result.seed:>6}{result.calls:>6}{result.optimum_joules:>11.0f}{result.joule_joules:>9.0f}{result.ratio:>7.3f}"
        f"{result.ratio_above_idle:>12.3f}{result.passthrough_joules / result.optimum_joules:>13.3f}{notes}"
    )


def summary(results: Sequence[Result]) -> str:
    """Means, and what is to be known of them."""
    ratios = [result.ratio for result in results]
    above = [result.ratio_above_idle for result in results]
    base = [result.passthrough_joules / result.optimum_joules for result in results]
    base_above = [
        (result.passthrough_joules - result.idle_joules) / (result.optimum_joules - result.idle_joules)
        for result in results
    ]
    late = sum(result.missed for result in results)
    proven = sum(result.proven for result in results)
    return (
        f"{len(results)} instances: joule {mean(ratios):.3f} x the optimum's joules on average, {max(ratios):.3f} at "
        f"most ({mean(above):.3f} above idle power); passthrough {mean(base):.3f} ({mean(base_above):.3f});\n"
        f"{late} deadlines missed by joule; {proven} optima proven on their grid"
    )


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
