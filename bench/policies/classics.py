"""What do `las` and `parrot` give where they are made for it? Overload, joins, shared prefixes.

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
from bench.twin.play import Player
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallFinished, EngineSpec, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowSpec
from workloads.shapes import stream

if TYPE_CHECKING:
    from scheduler.actions import Action
    from scheduler.events import Event
    from workloads.shapes import WorkflowShape

NOTHING = Promise("nothing")
CALIBRATION = "h200-llama-3.1-8b"
BACKLOG_WORKFLOWS = 1_000
OVERLOAD = 1.2
IN_FLIGHT = 256
"""The limit of all policies that have one, and of the engine's batch."""


class Means(NamedTuple):
    """Of one run: mean seconds of its workflows, and tokens of prompts that engines computed."""

    policy: str
    workflows: int
    seconds: float
    prefill_tokens: int = 0


def capacity(workload: str, seed: int = 1, calibration: str = CALIBRATION) -> float:
    """Calls a second that a lone engine answers while its batch is full: many workflows begin at once, all that was
    answered by the last moment at which enough calls for a full batch were there."""
    engine = TwinEngine(calibrations.load(calibration))
    config = SchedulerConfig((EngineSpec("twin", CALLS_MAX),), queue_calls=1_000_000, workflow_limits=LIMITS)
    mind = _Counting(Scheduler(config, 0.0))
    world = World(mind, {"twin": engine})
    player = Player(world)
    workflows = stream(workload, random.Random(f"capacity {workload} {seed}"))
    for _ in range(BACKLOG_WORKFLOWS):
        player.start(next(workflows))
    world.time.run()
    return mind.answered_then / mind.full_until


class _Counting:
    """A scheduler, and what it had answered by the last moment at which there were calls for a full batch."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._answered = self.answered_then = 0
        self.full_until = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """As the scheduler does."""
        actions = self._scheduler.handle(event, now)
        if isinstance(event, CallFinished):
            self._answered += 1
            if len(self._scheduler.calls) >= IN_FLIGHT:
                self.full_until, self.answered_then = now, self._answered
        return actions


def overload(seconds: float, seed: int = 1, workload: str = "composite") -> tuple[float, list[Means]]:
    """(calls a second, means under each policy) at 120 % of capacity for so many seconds, until all is answered."""
    rate = round(OVERLOAD * capacity(workload, seed), 1)
    runs = []
    for policy in ("passthrough", "fifo", "las"):
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
