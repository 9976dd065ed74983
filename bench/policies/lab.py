"""One run of a cell under a policy in virtual time: joules, times, misses, and the bound that no policy can pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.policies.cells import CALLS_MAX, Arrival, Cell, Promise, traffic
from bench.twin.play import Player
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import EnergyPrior, EngineSpec, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowLimits, WorkflowSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

BOUND_BATCH = 256.0
"""Sequences in each step, as the bound has it."""
LIMITS = WorkflowLimits(workflows=200_000, nodes=4_000_000, edges=16_000_000, closed_workflows=1)


class Run(NamedTuple):
    """What is played."""

    cell: Cell
    promise: Promise
    policy: str
    options: tuple[tuple[str, object], ...] = ()
    seconds: float = 400.0
    """Of arrivals."""
    seed: int = 1
    calibration: str = "h200-llama-3.1-8b"
    validate: bool = False


class Outcome(NamedTuple):
    """Of the whole run; compared over equal horizons only."""

    run: Run
    workflows: int
    joules: float
    """Until the last answer."""
    ended_at: float
    busy_seconds: float
    steps: int
    decode_tokens: int
    stretches: tuple[float, ...]
    """Each workflow's time over its isolated time, in order of arrival."""
    seconds: tuple[float, ...]
    missed: int
    """Of those with a deadline."""
    refused: int
    bound_joules: float
    """Above idle power: each call at its marginal cost in full batches."""
    idle_watts: float
    events: int
    mind_seconds: float

    def joules_until(self, horizon: float) -> float:
        """With idle power after its last answer."""
        assert horizon >= self.ended_at - 1e-6
        return self.joules + self.idle_watts * (horizon - self.ended_at)


def play(run: Run) -> Outcome:
    """The whole run, until all is answered."""
    arrivals = traffic(run.cell, run.seconds, run.seed, run.calibration)
    calibration = calibrations.load(run.calibration)
    engine = TwinEngine(calibration)
    config = SchedulerConfig(
        (EngineSpec("twin", CALLS_MAX),), run.policy, run.options, queue_calls=1_000_000, queue_seconds=1e9,
        workflow_limits=LIMITS,
    )  # fmt: skip
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior("twin", prior_of(calibration), simulated=True), 0.0)
    mind = Timed(scheduler, run.validate)
    world = World(mind, {"twin": engine})
    player = Declaring(world, run.promise)
    for arrival in arrivals:
        world.time.at(arrival.at, lambda arrival=arrival: player.arrive(arrival))  # type: ignore[misc]
    world.time.run()
    engine.validate()
    return outcome(run, arrivals, engine, player, mind)


class Timed:
    """A scheduler whose CPU time is counted."""

    def __init__(self, scheduler: Scheduler, validate: bool) -> None:
        self.scheduler = scheduler
        self._validate = validate
        self.events = 0
        self.seconds = 0.0

    def handle(self, event: object, now: float) -> list:
        from time import perf_counter

        started = perf_counter()
        actions = self.scheduler.handle(event, now)
        self.seconds += perf_counter() - started
        self.events += 1
        if self._validate:
            self.scheduler.validate()
        return actions


class Declaring(Player):
    """Declares each workflow whole, with its deadline, then makes its calls."""

    def __init__(self, world: World, promise: Promise) -> None:
        super().__init__(world)
        self._promise = promise

    def arrive(self, arrival: Arrival) -> None:
        """A workflow of the traffic comes."""
        promise, workflow = self._promise, arrival.workflow
        deadline = promise.seconds
        if promise.stretch is not None:
            deadline = promise.stretch * arrival.isolated_seconds
        nodes = tuple(
            NodeSpec(
                id=call.node,
                after=call.after,
                expected_output_tokens=call.output_tokens,
                max_output_tokens=call.output_tokens,
                prompt_tokens_estimate=call.prompt_tokens,
            )
            for call in workflow.calls
        )
        spec = WorkflowSpec(
            key="-", workflow_id=workflow.id, name=workflow.kind, workflow_class=promise.workflow_class,
            deadline_seconds=deadline, nodes=nodes,
        )  # fmt: skip
        self.world.tell(WorkflowDeclared(workflow.id, spec))
        self.start(workflow)


def outcome(run: Run, arrivals: Sequence[Arrival], engine: TwinEngine, player: Player, mind: Timed) -> Outcome:
    """What came of it."""
    isolated = {arrival.workflow.id: arrival.isolated_seconds for arrival in arrivals}
    played = sorted(player.played, key=lambda each: each.arrived_at)
    stretches = tuple(each.seconds / isolated[each.workflow.id] for each in played)
    promise, missed = run.promise, 0
    for each, stretch in zip(played, stretches, strict=True):
        if promise.stretch is not None:
            missed += stretch > promise.stretch
        elif promise.seconds is not None:
            missed += each.seconds > promise.seconds
    energy, totals = engine.calibration.energy, engine.totals
    bound = (
        energy.step * totals.decode_tokens / BOUND_BATCH
        + energy.decode_token * totals.decode_tokens
        + energy.repeated_token * 0.0
        + energy.context_token * totals.context_tokens
        + energy.prefill_token * totals.prefill_tokens
        + energy.attention_pair * totals.attention_pairs
    )
    return Outcome(
        run, len(played), engine.meter.joules, engine.meter.now, totals.busy_seconds, totals.steps,
        totals.decode_tokens, stretches, tuple(each.seconds for each in played), missed,
        sum(each.refused for each in played), bound, engine.costs.idle_watts, mind.events, mind.seconds,
    )  # fmt: skip
