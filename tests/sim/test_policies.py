"""What must hold of every policy that is registered, whatever happens: no call lost or run twice, none starves, the
same events lead to the same actions, and nothing waits for nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.twin import calibration
from backends.twin.prior import prior_of
from bench.policies.cells import PROMISES, Cell
from bench.policies.lab import Run, play
from scheduler.actions import Dispatch, PolicyFailed, WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.eventlog import replay
from scheduler.events import (
    CallArrived,
    CallFinished,
    EnergyPrior,
    EngineCounted,
    EngineSpec,
    MeterRead,
    PolicyChanged,
    Tick,
    WorkflowDeclared,
    WorkflowEnded,
)
from scheduler.policies import POLICIES
from scheduler.workflow.spec import NodeSpec, WorkflowSpec
from tests.sim.test_scheduler import World

if TYPE_CHECKING:
    from scheduler.actions import Action

EVERY = sorted(POLICIES)


class FlowWorld(World):
    """The same faults and traffic, with declared workflows, and any policy at any time."""

    def __init__(self, seed: int, policy: str, *, changes: bool = True) -> None:
        super().__init__(seed, policy)
        self.changes = changes
        self.nodes: list[tuple[str, str]] = []
        self.declared = 0
        self.joules = self.tokens = 0.0

    def apply(self, action: Action) -> None:
        if isinstance(action, PolicyFailed):
            raise AssertionError(action) from self.scheduler.deciding.error
        if isinstance(action, Dispatch):
            assert action.call_id in self.held, "sent twice, or after its end"
        super().apply(action)

    def meter(self) -> None:
        """What meters and engines say, or do not: figures that stand still, limits that somebody else has moved."""
        rng, name = self.random, self.random.choice("ab")
        if rng.random() < 0.1:
            self.tell(EnergyPrior(name, prior_of(calibration.load("h200-llama-3.1-8b")), simulated=True))
        elif rng.random() < 0.5:
            self.joules += rng.choice([0.0, 0.0, 50.0, 700.0])
            limit, throttled = rng.choice([None, 300.0, 700.0]), rng.random() < 0.2
            sample = MeterSample(
                self.now, Energy(self.joules), rng.choice([None, 350.0]), limit, throttled, "simulated"
            )
            self.tell(MeterRead(name, sample))
        else:
            self.tokens += rng.choice([0.0, 40.0])
            steps, prompts, cached = self.tokens, 3 * self.tokens, self.tokens
            self.tell(EngineCounted(name, Counters(self.now, steps, prompts, cached, self.tokens, 2.0, 0.0)))

    def declare(self) -> None:
        rng = self.random
        self.declared += 1
        workflow_id, wide = f"d{self.declared}", rng.randrange(1, 5)
        maps = tuple(NodeSpec(f"map-{i}", prefix=(7, self.declared)) for i in range(wide))
        spec = WorkflowSpec(
            "-", workflow_id, nodes=(*maps, NodeSpec("tool", after=("map-0",), tool=True),
            NodeSpec("end", after=(*[node.id for node in maps], "tool"), expected_output_tokens=40)),
            workflow_class=rng.choice([None, "interactive", "batch"]),
            deadline_seconds=rng.choice([None, 0.001, 5.0, 500.0]),
        )  # fmt: skip
        self.tell(WorkflowDeclared(workflow_id, spec))
        self.nodes += [(workflow_id, node.id) for node in spec.nodes if not node.tool]

    def step(self) -> None:
        rng = self.random
        kind = rng.random()
        if kind < 0.05:
            self.declare()
        elif kind < 0.12:
            self.now += rng.choice([0.0, 0.4, 2.0])
            self.meter()
        elif kind < 0.3 and self.nodes:
            workflow_id, node = self.nodes.pop(rng.randrange(len(self.nodes)))
            call_id = f"c{self.arrived}"
            self.arrived += 1
            self.held.add(call_id)
            self.tell(CallArrived(call_id, "-", rng.choice([None, "m"]), workflow_id, 100, 50, node))
        elif kind < 0.33 and self.declared:
            self.tell(
                WorkflowEnded("-", f"d{rng.randrange(self.declared) + 1}", rng.choice(["completed", "cancelled"]))
            )
        else:
            super().step()
            if rng.random() < 0.2:
                self.now += rng.choice([0.0, 0.0, 300.0])  # the clock jumps, never back

    def reconfigure(self) -> None:
        if not self.changes or self.random.random() < 0.5:
            changes, self.changes = self.changes, False
            while True:
                choice = self.random.getstate()
                if self.random.randrange(5) < 3:
                    self.random.setstate(choice)
                    super().reconfigure()
                    break
            self.changes = changes
            return
        name = self.random.choice(EVERY)
        options = {o: 2 for o in POLICIES[name].options if o.endswith("in_flight")}
        self.tell(PolicyChanged(name, tuple(sorted(options.items()))))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(EVERY), changes=st.booleans(), steps=st.integers(1, 200))
def test_no_call_is_lost_or_run_twice_and_the_same_events_lead_to_the_same_actions(
    seed: int, policy: str, changes: bool, steps: int
) -> None:
    world = FlowWorld(seed, policy, changes=changes)
    for _ in range(steps):
        world.step()
    world.finish()
    assert all(same for *_, same in replay(world.log))


def scheduler(policy: str, engines: int = 1, **options: Any) -> Scheduler:
    known = POLICIES[policy].options
    given = {name: value for name, value in options.items() if name in known}
    specs = tuple(EngineSpec(f"e{i}", 10_000) for i in range(engines))
    return Scheduler(
        SchedulerConfig(specs, policy, tuple(sorted(given.items())), queue_calls=100_000, queue_seconds=1e6), 0.0
    )


@pytest.mark.parametrize("policy", EVERY)
def test_calls_that_have_no_slack_do_not_wait_while_there_is_room(policy: str) -> None:
    mind = scheduler(policy, 2)
    for number in range(40):
        workflow_id = f"w{number}" if number % 2 else ""
        event = CallArrived(f"c{number}", "-", None, workflow_id, 50, 20, workflow_class="interactive")
        said = mind.handle(event, float(number))
        assert [action.call_id for action in said if isinstance(action, Dispatch)] == [f"c{number}"]
        mind.validate()


@pytest.mark.parametrize("policy", EVERY)
def test_everything_that_is_held_ends_once_its_time_is_asked_for(policy: str) -> None:
    """However long it is held for a deadline: by the wakes it asks for and the ends of what runs, all is sent."""
    mind, rng = scheduler(policy, max_in_flight=3), random.Random(5)
    running, now, wakes, sent = [], 0.0, [], 0

    def tell(event: Any) -> None:
        nonlocal sent
        for action in mind.handle(event, now):
            assert not isinstance(action, PolicyFailed), action
            if isinstance(action, Dispatch):
                running.append(action.call_id)
                sent += 1
            elif isinstance(action, WakeAt):
                wakes.append(action.at)
        mind.validate()

    for number in range(60):
        now += rng.random()
        tell(CallArrived(f"c{number}", "-", None, f"w{number % 20}", 50, 20, deadline_ms=60_000.0))
        if running and rng.random() < 0.5:
            tell(CallFinished(running.pop(0), 50, 0, 20))
    for _ in range(1000):
        if running:
            now += 0.1
            tell(CallFinished(running.pop(0), 50, 0, 20))
        elif mind.ready.count:
            now = max(now, min(wakes))
            wakes.clear()
            tell(Tick())
    assert sent == 60 and not mind.calls


@pytest.mark.parametrize("policy", ["las", "parrot"])
def test_the_oldest_is_passed_by_a_bounded_number(policy: str) -> None:
    """However many come that its order would put first, one call in `oldest_every` is the oldest."""
    every = 5
    mind = scheduler(policy, max_in_flight=1, oldest_every=every)
    mind.handle(CallArrived("first", "-", None, "old", 10, 10, "a"), 0.0)
    mind.handle(CallFinished("first", 10, 0, 10), 1000.0)  # "old" has attained much
    mind.handle(CallArrived("busy", "-", None, "", 10, 10), 1000.0)
    mind.handle(CallArrived("low", "-", None, "new" if policy == "parrot" else "old", 10, 10, "b", ("a",)), 1000.0)
    running, passed = "busy", 0
    for number in range(100):
        # Fresh workflows for las; for parrot the workflow that came first, over and over.
        mind.handle(CallArrived(f"n{number}", "-", None, f"f{number}" if policy == "las" else "old", 10, 10), 1001.0)
        (said,) = mind.handle(CallFinished(running, 10, 0, 10), 1001.0)
        assert isinstance(said, Dispatch)
        running = said.call_id
        if running == "low":
            break
        passed += 1
    assert 0 < passed <= 2 * every
    mind.validate()


def test_las_lets_new_workflows_pass_those_that_have_attained_more_and_tells_vllm() -> None:
    mind = scheduler("las", max_in_flight=1)
    mind.handle(CallArrived("a1", "-", None, "a", 10, 10, "1"), 0.0)
    mind.handle(CallFinished("a1", 10, 0, 10), 30.0)
    mind.handle(CallArrived("x", "-", None, "", 10, 10), 30.0)
    mind.handle(CallArrived("a2", "-", None, "a", 10, 10, "2", ("1",)), 31.0)
    mind.handle(CallArrived("b1", "-", None, "b", 10, 10, "1"), 32.0)
    assert mind.handle(CallFinished("x", 10, 0, 10), 33.0) == [Dispatch("b1", "e0", 0)]
    assert mind.handle(CallFinished("b1", 10, 0, 10), 34.0) == [Dispatch("a2", "e0", 3)], "30 s are under 4·2³ s"


def test_las_counts_the_longest_way_and_not_the_sum() -> None:
    mind = scheduler("las", max_in_flight=64)
    maps = tuple(NodeSpec(f"m{i}") for i in range(20))
    mind.handle(
        WorkflowDeclared("d", WorkflowSpec("-", "w", nodes=(*maps, NodeSpec("r", after=tuple(m.id for m in maps))))),
        0.0,
    )
    for i in range(20):
        mind.handle(CallArrived(f"c{i}", "-", None, "w", 10, 10, f"m{i}"), 0.0)
    for i in range(20):
        mind.handle(CallFinished(f"c{i}", 10, 0, 10), 3.0)
    assert mind.handle(CallArrived("r", "-", None, "w", 10, 10, "r"), 3.0) == [Dispatch("r", "e0", 0)]


def test_parrot_runs_a_join_before_the_maps_of_later_workflows() -> None:
    mind = scheduler("parrot", max_in_flight=2)
    for name in ("one", "two"):
        nodes = (NodeSpec("a"), NodeSpec("b"), NodeSpec("c", after=("a", "b")))
        mind.handle(WorkflowDeclared(name, WorkflowSpec("-", name, nodes=nodes)), 0.0)
        for node in "ab":
            mind.handle(CallArrived(f"{name} {node}", "-", None, name, 10, 10, node), 0.0)
    assert mind.handle(CallFinished("one a", 10, 0, 10), 1.0) == [Dispatch("two a", "e0", 2)]
    mind.handle(CallArrived("three", "-", None, "three", 10, 10), 1.5)
    assert mind.handle(CallFinished("two a", 10, 0, 10), 1.8) == [Dispatch("two b", "e0", 2)]
    assert mind.handle(CallFinished("one b", 10, 0, 10), 2.0) == [Dispatch("three", "e0", 3)]
    mind.handle(CallArrived("four", "-", None, "four", 10, 10), 2.0)
    mind.handle(CallArrived("one c", "-", None, "one", 10, 10, "c"), 2.1)
    assert mind.handle(CallFinished("three", 10, 0, 10), 2.2) == [Dispatch("one c", "e0", 1)]


def test_parrot_sends_what_begins_alike_to_one_engine_and_groups_together() -> None:
    mind = scheduler("parrot", 3)
    for number, text in enumerate([11, 22, 11, 22, 11, 22]):
        name = f"w{number}"
        mind.handle(WorkflowDeclared(name, WorkflowSpec("-", name, nodes=(NodeSpec("a", prefix=(text,)),))), 0.0)
    where: dict[int, set[str]] = {11: set(), 22: set()}
    for number, text in enumerate([11, 22, 11, 22, 11, 22]):
        (said,) = mind.handle(CallArrived(f"c{number}", "-", None, f"w{number}", 10, 10, "a"), 0.0)
        assert isinstance(said, Dispatch)
        where[text].add(said.engine)
    assert len(where[11]) == len(where[22]) == 1 and where[11] != where[22]
    nodes = (*(NodeSpec(f"m{i}") for i in range(6)), NodeSpec("end", after=tuple(f"m{i}" for i in range(6))))
    mind.handle(WorkflowDeclared("g", WorkflowSpec("-", "g", nodes=nodes)), 0.0)
    said = [mind.handle(CallArrived(f"g{i}", "-", None, "g", 10, 10, f"m{i}"), 0.0)[0] for i in range(6)]
    assert len({action.engine for action in said if isinstance(action, Dispatch)}) == 1


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("cell", [Cell("chain", 1.0), Cell("copilot", 0.5)], ids=lambda cell: cell.name)
def test_no_deadline_is_missed_at_light_load_that_passthrough_meets(cell: Cell, policy: str) -> None:
    """Up to the share that may be: of so few workflows, one."""
    promise = next(promise for promise in PROMISES if promise.name == "3x")
    base, mine = (play(Run(cell, promise, name, seconds=150.0)) for name in ("passthrough", policy))
    assert base.missed == 0 and mine.workflows == base.workflows > 3
    assert mine.missed <= 1 and mine.refused == 0
