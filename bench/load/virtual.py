"""How is a configuration played on the twin in virtual time? The load's calls through a scheduler, with no sockets."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.load.direct import ENGINE, Direct
from bench.load.playing import EnergyAbout, Note, Playing
from bench.load.spec import AS_IS, CALLS_MAX
from bench.load.virtual_meter import VirtualMeter
from bench.twin.play import Player, Progress
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EnergyPrior, EngineSpec, WorkflowDeclared
from scheduler.workflow.spec import NodeSpec, WorkflowLimits, WorkflowSpec
from workloads.played import Arrival, PlayedCall, PlayedWorkflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.twin.calibration import Calibration
    from backends.twin.request import Request
    from backends.twin.virtual import Answer
    from bench.load.load import Load
    from bench.load.spec import Spec
    from scheduler.actions import Action
    from scheduler.energy.bill_calls import Estimate
    from scheduler.events import Event
    from workloads.shapes import CallShape, WorkflowShape

LIMITS = WorkflowLimits(workflows=200_000, nodes=4_000_000, edges=16_000_000, closed_workflows=1)
NEWS_SECONDS = 0.2
ENERGY = EnergyAbout("simulated", "unavailable", "unavailable", "the twin's meter; it has no processors and no memory")
NOTES = (
    Note(
        "no_gateway_time",
        "virtual time: the gateway's own time and the network's are 0; there is none with policy none",
    ),
)


class VirtualArm:
    """One configuration's engine and scheduler, fresh; plays a warm-up and then its repeat."""

    def __init__(self, spec: Spec, on_news: Callable[[int], None] | None = None) -> None:
        """`on_news` hears now and then how many calls are over."""
        self.spec = spec
        calibration = calibrations.load(spec.calibration)
        self.engine = TwinEngine(calibration)
        if spec.cap_watts is not None:
            self.engine.set_limit_watts(spec.cap_watts * calibration.card.gpus, 0.0)
        places = spec.in_flight or CALLS_MAX
        self.mind = Direct(places) if spec.policy == AS_IS else Billing(_scheduler(spec, places, calibration))
        self.world = World(self.mind, {ENGINE: self.engine})
        self._on_news = on_news

    def play(self, load: Load) -> Playing:
        """All of it, or as far as it came before Ctrl-C."""
        player = _Player(self.world, self.spec, self.mind, self._on_news)
        meter = VirtualMeter(self.world, self.engine, ENGINE, told=self.spec.policy != AS_IS)
        player.on_end = meter.stop
        meter.start()
        complete, started_unix = True, time.time()
        try:
            player.begin(load)
            if load.arrivals:
                self.world.time.run()
        except KeyboardInterrupt:
            complete = False
            meter.stop()
        idle_watts = self.engine.costs.idle_watts
        return Playing(player.workflows(), meter.windows, complete, idle_watts, ENERGY, started_unix, NOTES)


def _scheduler(spec: Spec, places: int, calibration: Calibration) -> Scheduler:
    """A gateway's, that knows the twin's prices."""
    config = SchedulerConfig(
        (EngineSpec(ENGINE, places),),
        spec.policy,
        tuple(sorted(spec.policy_options.items())),
        queue_calls=1_000_000,
        queue_seconds=1e9,
        workflow_limits=LIMITS,
    )
    scheduler = Scheduler(config, 0.0)
    scheduler.handle(EnergyPrior(ENGINE, prior_of(calibration), simulated=True), 0.0)
    return scheduler


class Billing:
    """The scheduler; beside it, what the gateway says in an answer's head of the call's joules."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._estimates: dict[str, Estimate] = {}

    def handle(self, event: Event, now: float) -> list[Action]:
        """One event in, actions out."""
        if type(event) is CallFinished:
            call_id, prompt, cached, output, _ = event[:5]
            estimate = self._scheduler.energy.guess(call_id, prompt, cached, output, now)
            if estimate is not None:
                self._estimates[call_id] = estimate
        return self._scheduler.handle(event, now)

    def told_of(self, call_id: str) -> Estimate | None:
        """Of a call that is over, once."""
        return self._estimates.pop(call_id, None)


class _Player(Player):
    """Begins workflows as the load says, and keeps every call."""

    def __init__(self, world: World, spec: Spec, mind: Direct | Billing, on_news: Callable[[int], None] | None) -> None:
        super().__init__(world)
        self.began = world.time.now
        self.on_end: Callable[[], None] = lambda: None
        self._spec = spec
        self._mind = mind
        self._on_news = on_news
        self._news_at = 0.0
        self._arrivals: dict[str, Arrival] = {}
        self._calls: dict[str, list[PlayedCall]] = {}
        self._order: dict[str, tuple[WorkflowShape, float]] = {}
        """Begun: shape and intended time, by id."""
        self._ended: dict[str, float] = {}
        self._unsent: dict[str, int] = {}
        """Calls of each that are still to come."""
        self._over = 0
        self._todo: deque[Arrival] = deque()
        self._left = 0
        self._users = False
        self._think_seconds = 0.0

    def begin(self, load: Load) -> None:
        """Ask for all beginnings."""
        timeline = self.world.time
        self._left = len(load.arrivals)
        self._users, self._think_seconds = load.users is not None, load.think_seconds
        if not load.arrivals:
            self.on_end()
        elif load.users is not None:
            self._todo.extend(load.arrivals)
            for _ in range(load.users):
                timeline.at(self.began, self._next_of_a_user)
        else:
            for arrival in load.arrivals:
                timeline.at(self.began + arrival.seconds, lambda arrival=arrival: self._arrive(arrival))  # type: ignore[misc]

    def workflows(self) -> list[PlayedWorkflow]:
        """What was begun, in that order."""
        found = []
        for name, (shape, intended) in self._order.items():
            calls = tuple(self._calls.get(name, ()))
            ended = self._ended.get(name, max((call.answered_at for call in calls), default=intended))
            found.append(PlayedWorkflow(shape, intended, ended, calls, name))
        return found

    def _next_of_a_user(self) -> None:
        if self._todo:
            self._arrive(self._todo.popleft())

    def _arrive(self, arrival: Arrival) -> None:
        workflow = arrival.workflow
        self._arrivals[workflow.id] = arrival
        self._order[workflow.id] = workflow, self.world.time.now - self.began
        if self._spec.way in ("native", "parrot") and self._spec.policy != AS_IS:
            self._declare(arrival)
        self.start(workflow)

    def _declare(self, arrival: Arrival) -> None:
        """Said whole beforehand; Parrot knows no deadlines and no classes."""
        workflow, native = arrival.workflow, self._spec.way == "native"
        nodes = tuple(
            NodeSpec(
                id=call.node, after=call.after, max_output_tokens=call.output_tokens,
                data_from=tuple(part.output_of for part in call.prompt if part.output_of is not None),
                prompt_tokens_estimate=call.prompt_tokens,
                expected_output_tokens=call.output_tokens if native and self._spec.tell_lengths else None,
            )
            for call in workflow.calls
        )  # fmt: skip
        spec = WorkflowSpec(
            key="-", workflow_id=workflow.id, name=workflow.kind,
            workflow_class=arrival.workflow_class if native else None,
            deadline_seconds=arrival.deadline_seconds if native else None, nodes=nodes,
        )  # fmt: skip
        self.world.tell(WorkflowDeclared(workflow.id, spec))

    def arrived(self, call_id: str, workflow: WorkflowShape, call: CallShape) -> CallArrived:
        """As the way in tells it."""
        prompt, output = call.prompt_tokens, call.output_tokens
        if self._spec.way == "bare":  # a workflow of its own each, as for a gateway that infers nothing
            return CallArrived(call_id, "-", self.model, call_id, prompt, output)
        arrival = self._arrivals[workflow.id]
        hinted = self._spec.way == "hinted" and arrival.deadline_seconds is not None
        deadline_ms = arrival.deadline_seconds * 1e3 if hinted and arrival.deadline_seconds is not None else None
        workflow_class = arrival.workflow_class if self._spec.way == "hinted" else None
        expected = output if self._spec.tell_lengths and self._spec.way == "hinted" else None
        self._unsent[workflow.id] = unsent = self._unsent.get(workflow.id, len(workflow.calls)) - 1
        return CallArrived(
            call_id, "-", self.model, workflow.id, prompt, output, call.node, call.after, deadline_ms, workflow_class,
            expected, final=self._spec.way == "hinted" and not unsent,
        )  # fmt: skip

    def call_over(self, progress: Progress, call: CallShape, request: Request, ready_at: float, answer: Answer) -> None:
        """Keep it."""
        began, name = self.began, progress.workflow.id
        at, ended = ready_at - began, answer.finished_at - began
        estimate = self._mind.told_of(answer.call_id)
        self._calls.setdefault(name, []).append(
            PlayedCall(call.node, at, at, ended, 503, answer.reason)
            if answer.reason is not None
            else PlayedCall(
                call.node, at, at, ended, 200, "", call.prompt_tokens, answer.cached_tokens, call.output_tokens,
                None if answer.first_token_at is None else answer.first_token_at - began,
                held_seconds=None if self._spec.policy == AS_IS else request.arrived_at - ready_at,
                engine=None if self._spec.policy == AS_IS else ENGINE,
                energy_joules=None if estimate is None else estimate.joules,
                energy_source=None if estimate is None else estimate.source,
            )
        )  # fmt: skip
        self._over += 1
        if self._on_news is not None and (now := time.monotonic()) >= self._news_at:
            self._news_at = now + NEWS_SECONDS
            self._on_news(self._over)

    def workflow_over(self, progress: Progress) -> None:
        """The user has the next one."""
        now = self.world.time.now
        self._ended[progress.workflow.id] = now - self.began
        self._left -= 1
        if self._users and self._todo:
            self.world.time.at(now + self._think_seconds, self._next_of_a_user)
        if not self._left:
            self.on_end()


def about(spec: Spec) -> dict[str, Any]:
    """Of the engine, for the result."""
    calibration = calibrations.load(spec.calibration)
    return {
        "kind": "twin",
        "calibration": calibration.name,
        "calibration_source": calibration.source,
        "model": calibration.model.id,
        "card": calibration.card.model_dump(),
        "limits": calibration.engine.model_dump(),
    }
