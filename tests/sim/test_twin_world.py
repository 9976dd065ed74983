"""The gateway's own scheduler in front of simulated engines, in virtual time."""

from __future__ import annotations

import random

import pytest

from backends.twin.calibration import load
from backends.twin.engine import TwinEngine
from backends.twin.request import Request
from backends.twin.virtual import Answer, World
from bench.twin.play import Player, calls_per_workflow
from scheduler.actions import Action
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, EngineSpec, Event
from workloads.shapes import KINDS, stream

H200 = load("h200-llama-3.1-8b")


class Checked:
    """The scheduler, checked after each event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.events: list[Event] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        self.events.append(event)
        actions = self.scheduler.handle(event, now)
        self.scheduler.validate()
        return actions


def world(policy: str = "fifo", engines: int = 1, limit: int = 8, queue_calls: int = 4096) -> tuple[World, Scheduler]:
    names = [f"e{number}" for number in range(engines)]
    options = (("max_in_flight", limit),) if policy == "fifo" else ()
    config = SchedulerConfig(tuple(EngineSpec(name, 512) for name in names), policy, options, queue_calls=queue_calls)
    scheduler = Scheduler(config, 0.0)
    return World(Checked(scheduler), {name: TwinEngine(H200) for name in names}), scheduler


def send(world: World, name: str, prompt: int = 256, output: int = 64) -> list[Answer]:
    answers: list[Answer] = []
    arrived = CallArrived(name, "-", None, "w", prompt, output)
    world.call(arrived, Request(name, prompt, output), answers.append)
    return answers


@pytest.mark.parametrize("policy", ["passthrough", "fifo"])
@pytest.mark.parametrize("engines", [1, 3])
def test_a_minute_of_mixed_workflows_leaves_nothing(policy: str, engines: int) -> None:
    the_world, scheduler = world(policy, engines)
    player = Player(the_world)
    mean = calls_per_workflow(stream("composite", random.Random(0)), 200)
    player.poisson(stream("composite", random.Random(1)), 8 / mean, 60.0, random.Random(2))
    the_world.time.run()
    assert player.calls > 100
    assert all(not each.refused for each in player.played)
    assert sum(len(each.workflow.calls) for each in player.played) == player.calls
    assert not scheduler.calls
    for engine in the_world.engines.values():
        engine.validate()
        assert not engine.requests
        assert engine.totals.steps > 0


def test_the_limit_of_fifo_is_the_batch() -> None:
    the_world, _ = world("fifo", limit=4)
    batches: list[int] = []
    engine = the_world.engines["e0"]
    engine.watch = lambda run: batches.append(run.batch.decode)
    answers = [send(the_world, f"c{number}") for number in range(20)]
    the_world.time.run()
    assert all(answers)
    assert max(batches) == 4


def test_two_runs_are_the_same_to_the_last_digit() -> None:
    outcomes = []
    for _ in range(2):
        the_world, _ = world("fifo")
        player = Player(the_world)
        player.poisson(stream("composite", random.Random(7)), 0.5, 40.0, random.Random(8))
        the_world.time.run()
        outcomes.append([(each.workflow.id, each.finished_at) for each in player.played])
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]


def test_a_client_that_leaves_frees_its_place() -> None:
    the_world, scheduler = world("fifo", limit=1)
    first, second = send(the_world, "first", output=5000), send(the_world, "second")
    the_world.time.run(until=1.0)
    the_world.client_gone("first")
    the_world.time.run()
    assert not first
    assert second[0].reason is None
    assert second[0].finished_at < 2.5
    assert not scheduler.calls


def test_a_full_queue_refuses_with_its_reason() -> None:
    the_world, _ = world("fifo", limit=1, queue_calls=2)
    answers = [send(the_world, f"c{number}") for number in range(5)]
    refused = [answer[0].reason for answer in answers if answer and answer[0].reason]
    assert refused == ["queue_full", "queue_full"]
    the_world.time.run()
    assert all(answers)


def test_a_shared_prompt_is_found_in_the_cache() -> None:
    the_world, _ = world("fifo", limit=64)
    player = Player(the_world)
    for number in range(10):
        player.start(KINDS["copilot"](f"w{number}", random.Random(number)))
    the_world.time.run()
    totals = the_world.engines["e0"].totals
    assert totals.prefix_hits >= 9 * 5104


def test_late_company_is_cheaper_than_its_own_run() -> None:
    """What holding lives from: 8 calls together cost less than 8 calls one after the other."""
    joules = []
    for gap in (0.0, 2.0):
        the_world, _ = world("passthrough")
        for number in range(8):
            the_world.time.run(until=number * gap)
            send(the_world, f"c{number}")
        the_world.time.run()
        engine = the_world.engines["e0"]
        joules.append(engine.meter.joules - engine.now * H200.card.idle_watts)
    assert joules[0] < 0.25 * joules[1]
