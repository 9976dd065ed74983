"""What do `las`, `parrot` and `joule` give where order counts? Overload, joins, shared prefixes.

Each figure is a mean over workflows, in simulated seconds on the twin; the same arrivals and tokens for every policy.
"""

from __future__ import annotations

import random
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.policies.cells import CALLS_MAX, Cell, Promise, traffic
from bench.policies.lab import LIMITS, Run, play
from bench.twin.play import Player, calls_per_workflow
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import EngineSpec, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowSpec
from workloads.shapes import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workloads.shapes import WorkflowShape

NOTHING = Promise("nothing")
CALIBRATION = "h200-llama-3.1-8b"
STEADY_SECONDS = 600.0
RATES, RATE_STEP = (10.0, 90.0), 2.5
OVERLOAD = 1.2
IN_FLIGHT = 256
"""The limit of all policies that have one, and of the engine's batch."""


JOINS = (("map-reduce", 12.0, 16), ("map-reduce", 24.0, 16), ("coding", 6.0, 32), ("coding", 12.0, 32))
"""Workload, calls a second, and the limit in flight, for `ordered`: at the second rate of each calls wait."""
JOINS_SECONDS, SHARED_SECONDS = 300.0, 200.0
SHARED = (("copilot", 2.0, 4), ("coding", 20.0, 4), ("composite", 20.0, 4))
"""Workload, calls a second, engines, for `shared_prefixes`."""


class Means(NamedTuple):
    """Of one run: mean seconds of its workflows, and tokens of prompts that engines computed."""

    policy: str
    workflows: int
    seconds: float
    prefill_tokens: int = 0


def capacity(workload: str, seed: int = 1, calibration: str = CALIBRATION) -> float:
    """The highest rate of calls a second that a lone engine keeps up with: after `STEADY_SECONDS` of arrivals there are
    not more calls than fill its batch. Found by bisection, to `RATE_STEP`."""
    low, high = RATES
    while high - low > RATE_STEP:
        middle = (low + high) / 2
        if in_flight_at_the_end(workload, middle, seed, calibration) > IN_FLIGHT:
            high = middle
        else:
            low = middle
    return low


def in_flight_at_the_end(workload: str, rate: float, seed: int, calibration: str) -> int:
    """Calls that are under way when the arrivals of `STEADY_SECONDS` end, everything sent at once."""
    engine = TwinEngine(calibrations.load(calibration))
    config = SchedulerConfig((EngineSpec("twin", CALLS_MAX),), queue_calls=1_000_000, workflow_limits=LIMITS)
    scheduler = Scheduler(config, 0.0)
    world = World(scheduler, {"twin": engine})
    rng = random.Random(f"capacity {workload} {seed}")
    per_second = rate / calls_per_workflow(stream(workload, random.Random(0)))
    Player(world).poisson(stream(workload, rng), per_second, STEADY_SECONDS, rng)
    world.time.run(STEADY_SECONDS)
    return len(scheduler.calls)


def overload(seconds: float, seed: int = 1, workload: str = "composite") -> tuple[float, list[Means]]:
    """(calls a second, means under each policy) at 120 % of capacity for so many seconds, until all is answered."""
    rate = round(OVERLOAD * capacity(workload, seed), 1)
    runs = []
    for policy in ("passthrough", "fifo", "las", "joule"):
        done = play(Run(Cell(workload, rate), NOTHING, policy, _options(policy, IN_FLIGHT), seconds, seed))
        runs.append(Means(policy, done.workflows, fmean(done.seconds)))
    return rate, runs


def ordered(workload: str, rate: float, in_flight: int, seconds: float, seed: int = 1) -> list[Means]:
    """`parrot` beside `fifo`, which takes calls in the order of requests, under the same limit."""
    runs = []
    for policy in ("fifo", "parrot"):
        done = play(Run(Cell(workload, rate), NOTHING, policy, _options(policy, in_flight), seconds, seed))
        runs.append(Means(policy, done.workflows, fmean(done.seconds)))
    return runs


def _options(policy: str, in_flight: int) -> tuple[tuple[str, object], ...]:
    return () if policy == "passthrough" else (("max_in_flight", in_flight),)


class Sharing(Player):
    """Declares each workflow with hashes of what its prompts begin with, then makes its calls."""

    def begin(self, workflow: WorkflowShape) -> None:
        """It comes now."""
        nodes = []
        for call in workflow.calls:
            marks, so_far = [], ""
            for part in call.prompt:
                so_far += f"|{part.text}"
                marks.append(hash_of(so_far))
            nodes.append(
                NodeSpec(call.node, after=call.after, max_output_tokens=call.output_tokens, prefix=tuple(marks))
            )
        spec = WorkflowSpec("-", workflow.id, name=workflow.kind, nodes=tuple(nodes))
        self.world.tell(WorkflowDeclared(workflow.id, spec))
        self.start(workflow)


def hash_of(text: str) -> int:
    """The same in every process."""
    return random.Random(text).getrandbits(60)


def shared_prefixes(workload: str, rate: float, engines: int, seconds: float, seed: int = 1) -> tuple[list[Means], int]:
    """Means on several engines, with the prompt tokens computed; and those that must be: each leading text once."""
    arrivals = traffic(Cell(workload, rate), seconds, seed, CALIBRATION)
    runs = []
    for policy in ("fifo", "parrot"):
        twins = {f"twin-{number}": TwinEngine(calibrations.load(CALIBRATION)) for number in range(engines)}
        config = SchedulerConfig(
            tuple(EngineSpec(name, CALLS_MAX) for name in twins), policy, _options(policy, IN_FLIGHT),
            queue_calls=1_000_000, workflow_limits=LIMITS,
        )  # fmt: skip
        world = World(Scheduler(config, 0.0), twins)
        player = Sharing(world)
        for arrival in arrivals:
            world.time.at(arrival.at, partial(player.begin, arrival.workflow))
        world.time.run()
        computed = sum(twin.totals.prefill_tokens for twin in twins.values())
        runs.append(Means(policy, len(player.played), fmean(each.seconds for each in player.played), computed))
    return runs, once([arrival.workflow for arrival in arrivals])


def once(workflows: list[WorkflowShape]) -> int:
    """Prompt tokens if each text that prompts begin with is computed once; calls in an order in which they can run."""
    seen: set[str] = set()
    tokens = 0
    for workflow in workflows:
        for call in workflow.calls:
            so_far = ""
            for part in call.prompt:
                so_far += f"|{part.text}"
                if so_far not in seen:
                    seen.add(so_far)
                    tokens += part.tokens
            seen.add(f"{so_far}|{workflow.id} {call.node}")  # what was decoded is cached too
    return tokens


def lines(seconds: float, seed: int = 1) -> Iterator[str]:
    """All of it as tables in Markdown, line by line as they are found. `seconds`: of arrivals under overload."""
    rate, runs = overload(seconds, seed)
    yield f"Composite at {rate:g} calls/s, {OVERLOAD:.0%} of what the engine keeps up with, {seconds:g} s of arrivals:"
    yield from ("", "| policy | mean seconds of a workflow | to `passthrough` |", "| --- | --- | --- |")
    yield from [f"| `{run.policy}` | {run.seconds:.1f} | {run.seconds / runs[0].seconds:.2f} |" for run in runs]
    yield ""
    yield "| workload | calls/s | `max_in_flight` | `fifo`, mean s | `parrot`, mean s | ratio |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for workload, rate, in_flight in JOINS:
        fifo, parrot = ordered(workload, rate, in_flight, JOINS_SECONDS, seed)
        shown = f"{fifo.seconds:.1f} | {parrot.seconds:.1f} | {parrot.seconds / fifo.seconds:.2f}"
        yield f"| {workload} | {rate:g} | {in_flight} | {shown} |"
    yield ""
    yield "| workload | calls/s | engines | tokens, each beginning once | computed under `fifo` | under `parrot` |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for workload, rate, engines in SHARED:
        (fifo, parrot), needed = shared_prefixes(workload, rate, engines, SHARED_SECONDS, seed)
        shown = " | ".join(f"{run.prefill_tokens:,} ({run.prefill_tokens / needed:.2f})" for run in (fifo, parrot))
        yield f"| {workload} | {rate:g} | {engines} | {needed:,} | {shown} |"
