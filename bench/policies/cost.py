"""`joulegate-bench policy-cost`: what a call event costs the scheduler under each policy, and its longest decision.

Chains of calls with deadlines; whatever ends is followed at once, so that always as many calls are live. Every pass
plays the same events; of each event the median of its CPU time over the passes counts, since other work only adds.
"""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from bench.policies.lab import LIMITS
from bench.programs import BenchError
from scheduler.actions import Dispatch, WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EnergyPrior, EngineSpec, Tick, WorkflowDeclared
from scheduler.policies import POLICIES
from scheduler.workflow.spec import NodeSpec, WorkflowSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from scheduler.events import Event
    from scheduler.policies.base import Policy

BASELINE = "passthrough"
LIVE = (1_000, 100_000)
MICROSECONDS_MOST = {1_000: 25.0, 100_000: 40.0}
DECISION_MS_MOST = 2.0
STEP_SECONDS = 0.02
"""Between two calls that end."""
CHAIN = 3
EVENTS, PASSES = 10_000, 5
CALIBRATION = "h200-llama-3.1-8b"
IN_FLIGHT = 256


class Cost(NamedTuple):
    """Of one policy with so many live calls."""

    policy: str
    live: int
    held: int
    """Of them, when the count began."""
    events: int
    """Calls that came or ended."""
    event_microseconds: float
    """Mean of an event with all that it led to, wakes included; of each the median over the passes."""
    event_microseconds_p99: float
    policy_microseconds: float
    """Of the mean: inside of the policy."""
    longest_ms: float
    """All that the policy did in one event: while it decides, the gateway's loop does nothing else."""
    ratio: float | None = None
    """To the baseline's mean, in the same run."""


class Watched:
    """A policy whose CPU time is counted."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name = policy.name
        self.spent = 0
        """Nanoseconds."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._policy, name)
        if name not in {"next", "arrived", "sent", "ended"}:
            return method

        def timed(*args: Any) -> Any:
            started = thread_time_ns()
            try:
                return method(*args)
            finally:
                self.spent += thread_time_ns() - started

        setattr(self, name, timed)
        return timed


class Load:
    """A scheduler with so many live calls, and what happens to them."""

    def __init__(self, policy: str, live: int, seed: int, *, watched: bool = False) -> None:
        self.rng = random.Random(seed)
        self.live = live
        most = (("max_in_flight", IN_FLIGHT),) if "max_in_flight" in POLICIES[policy].options else ()
        config = SchedulerConfig(
            (EngineSpec("twin", 1_000_000),), policy, most, queue_calls=1_000_000, queue_seconds=1e9,
            workflow_limits=LIMITS,
        )  # fmt: skip
        self.scheduler = Scheduler(config, 0.0)
        self.scheduler.handle(EnergyPrior("twin", prior_of(calibrations.load(CALIBRATION)), simulated=True), 0.0)
        self.watched = Watched(self.scheduler.deciding.policy) if watched else None
        if self.watched is not None:
            self.scheduler.deciding.policy = self.watched  # type: ignore[assignment]
        self.now = 0.0
        self.wakes: list[float] = []
        self.running: list[str] = []
        self.ended = self.count = 0
        self.left: dict[str, int] = {}
        self.times: list[int] = []
        """CPU nanoseconds of each call event, with the wakes after it; where it is watched, the policy's alone."""

    def tell(self, event: Event, *, new: bool) -> None:
        """One event and what comes of it. `new`: it is a call's; else it is a wake, and counts to the one before."""
        watched = self.watched
        started = thread_time_ns() if watched is None else watched.spent
        actions = self.scheduler.handle(event, self.now)
        took = (thread_time_ns() if watched is None else watched.spent) - started
        if new:
            self.times.append(took)
        elif self.times:
            self.times[-1] += took
        for action in actions:
            if type(action) is Dispatch:
                self.running.append(action.call_id)
            elif type(action) is WakeAt:
                self.wakes.append(action.at)

    def begin(self) -> None:
        """A workflow comes: declared, which is not counted here, then its first call."""
        rng, name = self.rng, f"w{self.count}"
        self.count += 1
        nodes = tuple(
            NodeSpec(
                f"n{place}", after=(f"n{place - 1}",) if place else (),
                expected_output_tokens=rng.randrange(50, 400), prompt_tokens_estimate=rng.randrange(100, 2000),
            )
            for place in range(CHAIN)
        )  # fmt: skip
        deadline = CHAIN * self.live * STEP_SECONDS * rng.uniform(0.7, 1.5) + 10.0
        self.scheduler.handle(
            WorkflowDeclared(name, WorkflowSpec("-", name, "chain", nodes=nodes, deadline_seconds=deadline)), self.now
        )
        self.left[name] = CHAIN
        self.call(name)

    def call(self, name: str) -> None:
        """Its next call comes."""
        place = CHAIN - self.left[name]
        self.tell(CallArrived(f"{name}/{place}", "-", None, name, 1000, 400, f"n{place}"), new=True)

    def step(self) -> None:
        """A little later: wakes that are due, then a call ends and the next one comes."""
        self.now += STEP_SECONDS
        if self.wakes and min(self.wakes) <= self.now:
            self.wakes = [at for at in self.wakes if at > self.now]
            self.tell(Tick(), new=False)
        if self.ended == len(self.running):
            self.begin()
            return
        call_id = self.running[self.ended]
        self.ended += 1
        self.tell(CallFinished(call_id, 1000, 0, 200), new=True)
        name = call_id.partition("/")[0]
        self.left[name] -= 1
        if self.left[name]:
            self.call(name)
        else:
            del self.left[name]
            self.begin()


def play(policy: str, live: int, events: int, seed: int, *, watched: bool) -> tuple[int, list[int]]:
    """(held calls, CPU nanoseconds of each call event) of one pass."""
    load = Load(policy, live, seed, watched=watched)
    gc.disable()  # as the gateway all but does
    try:
        for _ in range(live):
            load.begin()
        for _ in range(live // 10):  # what began all at once is over
            load.step()
        load.times.clear()
        held = load.scheduler.ready.count
        while len(load.times) < events:
            load.step()
    finally:
        gc.enable()
    load.scheduler.validate()
    return held, load.times[:events]


def measure(policy: str, live: int, events: int, passes: int, seed: int = 1) -> Cost:
    """The same events in each pass."""
    played = [play(policy, live, events, seed, watched=False) for _ in range(passes)]
    each = sorted(median(times) for times in zip(*(times for _, times in played), strict=True))
    watched = [play(policy, live, events, seed, watched=True)[1] for _ in range(passes)]
    own = sorted(median(times) for times in zip(*watched, strict=True))
    mean, p99 = sum(each) / events, each[int(0.99 * events)]
    return Cost(policy, live, played[0][0], events, mean / 1e3, p99 / 1e3, sum(own) / events / 1e3, own[-1] / 1e6)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `policy-cost`."""
    parser.add_argument("--policy", action="append", metavar="NAME", help="(may be given again; default: all)")
    parser.add_argument("--live", action="append", type=int, help=f"live calls (may be given again; default: {LIVE})")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"of calls, a pass (default: {EVENTS})")
    parser.add_argument("--passes", type=int, default=PASSES, help=f"(default: {PASSES})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Measure and print: 0, or 1 if something costs more than it may. BenchError for options that cannot be used."""
    for name in args.policy or ():
        if name not in POLICIES:
            raise BenchError(f"--policy: there is no policy {name!r}; there are: {', '.join(POLICIES)}")
    if args.events < 1 or args.passes < 1 or any(live < 1 for live in args.live or ()):
        raise BenchError("--live, --events and --passes must be above 0")
    names = [BASELINE, *(name for name in args.policy or POLICIES if name != BASELINE)]
    rows = table(names, args.live or LIVE, args.events, args.passes)
    if args.output is not None:
        args.output.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return 0 if all(holds(row) for row in rows) else 1


def holds(row: Cost) -> bool:
    """Whether it costs no more than it may; of other numbers of calls nothing is asked but short decisions."""
    most = MICROSECONDS_MOST.get(row.live, float("inf"))
    return row.event_microseconds <= most and row.longest_ms <= DECISION_MS_MOST


def table(names: Sequence[str], lives: Sequence[int], events: int, passes: int) -> list[Cost]:
    """All rows, printed as they come."""
    head = (
        f"{'':14}{'live':>8}{'held':>8}{'us an event':>13}{'p99':>8}{'policy':>9}"
        f"{'longest ms':>12}{'to ' + BASELINE:>16}"
    )
    print(head)
    rows: list[Cost] = []
    for live in lives:
        base = None
        for name in names:
            cost = measure(name, live, events, passes)
            base = base or cost.event_microseconds
            row = cost._replace(ratio=cost.event_microseconds / base)
            rows.append(row)
            over = "" if holds(row) else "  more than it may"
            print(
                f"{name:14}{live:>8}{row.held:>8}{row.event_microseconds:>13.1f}{row.event_microseconds_p99:>8.0f}"
                f"{row.policy_microseconds:>9.1f}"
                f"{row.longest_ms:>12.2f}{row.ratio:>16.2f}{over}",
                flush=True,
            )
    return rows
