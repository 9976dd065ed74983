"""One run of a cell under a policy in virtual time: joules, times, misses, and the bound that no policy can pass."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.cost import Batch
from backends.twin.engine import TwinEngine
from backends.twin.meter import COUNTER_SECONDS
from backends.twin.prior import prior_of
from backends.twin.telemetry import cards_read
from backends.twin.virtual import World
from bench.policies.cells import CALLS_MAX, Arrival, Cell, Promise, traffic
from bench.twin.play import Player
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.caps import CapRules
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import EnergyPrior, EngineCounted, EngineSpec, MeterRead, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowLimits, WorkflowSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.actions import Action
    from scheduler.events import Event
    from workloads.shapes import WorkflowShape

READ_SECONDS = 0.4
CAPS = CapRules(mode="actuate", ttft_seconds_p95=3600.0, itl_seconds_p95=60.0)
"""Targets that nothing misses: what was promised to these users is when their workflows end."""
SLICE_SECONDS = 10.0
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
    caps: bool = False
    """The cap controller may set the card's limit; then deadlines are all that was promised."""


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
    """Above idle power; see `bound_joules`."""
    plain_bound_joules: float
    """Above idle power, at the equations' prices, without the card's limit."""
    idle_watts: float
    events: int
    mind_seconds: float
    limit_watts: float
    """Mean of what was asked of each card, until the last answer."""

    def joules_until(self, horizon: float) -> float:
        """With idle power after its last answer."""
        assert horizon >= self.ended_at - 1e-6
        return self.joules + self.idle_watts * (horizon - self.ended_at)


def play(run: Run, clients: type[Declaring] | None = None) -> Outcome:
    """The whole run, until all is answered. `clients`: others than those that all have the run's promise."""
    arrivals = traffic(run.cell, run.seconds, run.seed, run.calibration)
    calibration = calibrations.load(run.calibration)
    engine = TwinEngine(calibration)
    config = SchedulerConfig(
        (EngineSpec("twin", CALLS_MAX),), run.policy, run.options, queue_calls=1_000_000, queue_seconds=1e9,
        workflow_limits=LIMITS, caps=CAPS if run.caps else CapRules(),
    )  # fmt: skip
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior("twin", prior_of(calibration), simulated=True), 0.0)
    mind = Timed(scheduler, run.validate)
    world = World(mind, {"twin": engine})
    player = (clients or Declaring)(world, run.promise)
    for arrival in arrivals:
        world.time.at(arrival.at, lambda arrival=arrival: player.arrive(arrival))  # type: ignore[misc]
    meter = Meter(world, engine, player, len(arrivals), caps=run.caps)
    meter.read()
    while run.caps and len(player.played) < len(arrivals):  # who decides about caps wants to be woken for ever
        world.time.run(world.time.now + SLICE_SECONDS)
    if not run.caps:
        world.time.run()
    engine.validate()
    return outcome(run, arrivals, engine, player, mind, meter)


class Timed:
    """A scheduler whose CPU time is counted."""

    def __init__(self, scheduler: Scheduler, validate: bool) -> None:
        self.scheduler = scheduler
        self._validate = validate
        self.events = 0
        self.seconds = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler's own."""
        started = perf_counter()
        actions = self.scheduler.handle(event, now)
        self.seconds += perf_counter() - started
        self.events += 1
        if self._validate:
            self.scheduler.validate()
        return actions


class Meter:
    """Reads the engine's power device and counters as a gateway does, as long as there is something to come."""

    def __init__(self, world: World, engine: TwinEngine, player: Player, workflows: int, *, caps: bool) -> None:
        self._world, self._engine, self._player, self._workflows = world, engine, player, workflows
        self._caps = caps
        self.reads = 0
        self.limit_watts = 0.0
        """Sum over the readings."""

    def read(self) -> None:
        """Now, and again after a while."""
        world, engine = self._world, self._engine
        now = world.time.now
        self.reads += 1
        self.limit_watts += engine.limit.requested_watts
        if self._caps:
            world.tell(cards_read("twin", engine, now, may_set=True))
        throttled = engine.sm_clock_mhz < engine.calibration.card.sm_clock_max_mhz
        joules = engine.meter.joules_at(now // COUNTER_SECONDS * COUNTER_SECONDS)
        limit = engine.limit.in_force_watts(now)
        sample = MeterSample(now, Energy(joules), engine.meter.average_watts(), limit, throttled, "simulated")
        world.tell(MeterRead("twin", sample))
        totals, run = engine.totals, engine._run  # vLLM counts each step, the twin each run
        done = run.done(engine.now) if run is not None else 0
        counters = Counters(
            now,
            float(totals.steps + done),
            float(totals.prompt_tokens),
            float(totals.prefix_hits),
            float(totals.generation_tokens + done * (run.batch.decode if run is not None else 0)),
            float(len(engine.running)),
            float(len(engine.requests) - len(engine.running)),
        )
        world.tell(EngineCounted("twin", counters))
        if len(self._player.played) < self._workflows:
            world.time.at(now + READ_SECONDS, self.read)


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
        self.declare(workflow, deadline, promise.workflow_class)

    def declare(self, workflow: WorkflowShape, deadline: float | None, workflow_class: str | None = None) -> None:
        """It comes now, with so many seconds till its deadline."""
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
            key="-", workflow_id=workflow.id, name=workflow.kind, workflow_class=workflow_class,
            deadline_seconds=deadline, nodes=nodes,
        )  # fmt: skip
        self.world.tell(WorkflowDeclared(workflow.id, spec))
        self.start(workflow)


def outcome(
    run: Run, arrivals: Sequence[Arrival], engine: TwinEngine, player: Player, mind: Timed, meter: Meter
) -> Outcome:
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
    totals = engine.totals
    ended_at = max(each.finished_at for each in played)  # a timer of nobody's may have come much later
    joules = engine.meter.joules - engine.costs.idle_watts * (engine.meter.now - ended_at)
    return Outcome(
        run=run,
        workflows=len(played),
        joules=joules,
        ended_at=ended_at,
        busy_seconds=totals.busy_seconds,
        steps=totals.steps,
        decode_tokens=totals.decode_tokens,
        stretches=stretches,
        seconds=tuple(each.seconds for each in played),
        missed=missed,
        refused=sum(each.refused for each in played),
        bound_joules=bound_joules(arrivals, engine),
        plain_bound_joules=plain_bound_joules(engine),
        idle_watts=engine.costs.idle_watts,
        events=mind.events,
        mind_seconds=mind.seconds,
        limit_watts=meter.limit_watts / max(meter.reads, 1) / engine.calibration.card.gpus,
    )


def bound_joules(arrivals: Sequence[Arrival], engine: TwinEngine) -> float:
    """What no policy can go under, above idle power, with the tokens that this run computed: each output token in a
    step of 256, each new prompt token in a full chunk, at the price that these have under the card's own limit.

    A prompt's leading parts that other calls have too are read at the price of what is read again.
    """
    seen: Counter[str] = Counter(part.text for each in arrivals for call in each.workflow.calls for part in call.prompt)
    repeated = 0.0
    for each in arrivals:
        for call in each.workflow.calls:
            shared = 0
            for part in call.prompt:
                if seen[part.text] == 1:
                    break
                shared += part.tokens
            repeated += shared * call.output_tokens
    costs, totals, card = engine.costs, engine.totals, engine.calibration.card
    limit = card.limit_watts_default * card.gpus
    tokens, chunk = totals.decode_tokens, engine.calibration.engine.max_num_batched_tokens
    full = Batch(
        int(BOUND_BATCH),
        BOUND_BATCH * max(totals.context_tokens - repeated, 0.0) / tokens,
        BOUND_BATCH * min(repeated, totals.context_tokens) / tokens,
    )
    prompt = Batch(prefill=chunk, pairs=chunk * totals.attention_pairs / totals.prefill_tokens)
    decode, prefill = costs.step(full, limit), costs.step(prompt, limit)
    above = [(step.watts - costs.idle_watts) * step.seconds for step in (decode, prefill)]
    return above[0] * tokens / BOUND_BATCH + above[1] * totals.prefill_tokens / chunk


def plain_bound_joules(engine: TwinEngine) -> float:
    """Each call's marginal cost by the equations, in steps of 256."""
    energy, totals = engine.calibration.energy, engine.totals
    return (
        (energy.step / BOUND_BATCH + energy.decode_token) * totals.decode_tokens
        + energy.context_token * totals.context_tokens
        + energy.prefill_token * totals.prefill_tokens
        + energy.attention_pair * totals.attention_pairs
    )
