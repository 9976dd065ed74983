"""One run of a workload on the twin in virtual time, under a fixed cap or the controller: joules, times, misses."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.cost import Batch, CostModel
from backends.twin.device import TwinDevice
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.energy.play import off
from bench.energy.watch import Sight, Watch
from bench.twin.play import Player
from scheduler.actions import SetCap
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.caps import (
    CapController,
    CapRules,
    CardLimits,
    EngineView,
    Recent,
    Savings,
    Slack,
)
from scheduler.energy.model import EnergyModel
from scheduler.energy.windows import WindowMaker, WindowRule
from scheduler.events import CallArrived, CallFinished, CapApplied, EngineSpec, FirstToken
from workloads.shapes import KINDS, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.twin.calibration import Calibration
    from scheduler.actions import Action
    from scheduler.energy.caps import Decision
    from scheduler.energy.window import Window
    from scheduler.events import Event
    from workloads.shapes import WorkflowShape

SETTLE_SHARE = 6.0
"""Time constants until a new limit is in force."""
DRAIN_SECONDS = 120.0
"""Behind the last arrival; what is not done by then has missed."""
CALLS_MAX = 4096


class Targets(NamedTuple):
    """What users were promised."""

    ttft_seconds: float = float("inf")
    itl_seconds: float = float("inf")
    stretch: float = float("inf")
    """A workflow may take so many times as long as alone on the engine."""


class Scene(NamedTuple):
    """What is played."""

    calibration: str
    workload: str
    rate: float
    """Workflows a second."""
    seconds: float
    warm_seconds: float
    """Of them, before anything is counted."""
    seed: int
    targets: Targets = Targets()


class Outcome(NamedTuple):
    """What came of it, from the warm-up's end until all is over."""

    joules: float
    useful_tokens: int
    ttft: tuple[float, ...]
    itl: tuple[float, ...]
    stretch: tuple[float, ...]
    late: int
    """Workflows that were not done at the end."""
    busy_share: float
    throttled_share: float
    """Of the time in which a step ran: the limit was binding."""
    moves: int = 0
    ups: tuple[str, ...] = ()
    """Why the cap went up, each time."""
    watts: float = 0.0
    """Mean cap of each card."""
    saved_joules: tuple[float, float, float] = (0.0, 0.0, 0.0)
    claimed_seconds: float = 0.0

    @property
    def joules_per_token(self) -> float:
        """Of an output token."""
        return self.joules / max(self.useful_tokens, 1)

    def misses(self, targets: Targets) -> tuple[float, float, float]:
        """Shares of calls over the TTFT and the ITL, and of workflows over their time."""
        return (
            _over(self.ttft, targets.ttft_seconds),
            _over(self.itl, targets.itl_seconds),
            _over((*self.stretch, *[float("inf")] * self.late), targets.stretch),
        )


class Play(NamedTuple):
    """How a scene is played: `watts` of each card for all of it, or (None) by the controller."""

    watts: float | None
    rules: CapRules | None = None
    prior_off: float | None = 0.3
    """The live model starts with each price off by this share. None: it is told the truth, and learns nothing."""
    every_decision: list[Decision] | None = None
    """Filled with each, where somebody wants to see them."""


def isolated_seconds(workflow: WorkflowShape, costs: CostModel) -> float:
    """The longest path of a workflow that has the engine to itself, under the default limit."""
    ends: dict[str, float] = {}
    for call in workflow.calls:
        prompt, pairs = call.prompt_tokens, call.prompt_tokens**2 / 2
        own = costs.step(Batch(0, 0.0, 0.0, prompt, pairs), costs.limit_watts).seconds
        context = prompt + call.output_tokens / 2
        own += (call.output_tokens - 1) * costs.step(Batch(1, context), costs.limit_watts).seconds
        ends[call.node] = own + max((ends[node] for node in call.after), default=0.0)
    return max(ends.values())


class Stage:
    """A scene under way. The scheduler, the window maker and the live model are the gateway's own."""

    def __init__(self, scene: Scene, play: Play) -> None:
        self.scene = scene
        self.calibration: Calibration = calibrations.load(scene.calibration)
        self.engine = TwinEngine(self.calibration)
        self.scheduler = Scheduler(SchedulerConfig((EngineSpec("twin", CALLS_MAX),), "passthrough"), 0.0)
        self.costs = CostModel(self.calibration)
        self.isolated: dict[str, float] = {}
        self.caps: Caps | None = None
        if play.watts is not None:
            self.engine.set_limit_watts(play.watts * self.calibration.card.gpus, 0.0)
            self.world = World(self, {"twin": self.engine})
        else:
            self.caps = Caps(self, play)
            self.world = World(self.caps, {"twin": self.engine})
        self.player = Player(self.world)
        self.ttft: list[float] = []
        self.itl: list[float] = []
        self._first: dict[str, float] = {}
        self._sent: dict[str, float] = {}

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler, with deadlines on what arrives, and a note of what each client sees."""
        if isinstance(event, CallArrived):
            self._sent[event.call_id] = now
            stretch = self.scene.targets.stretch
            if not event.after and stretch < float("inf"):
                event = event._replace(deadline_ms=1000.0 * stretch * self.isolated[event.workflow_id])
        elif isinstance(event, FirstToken):
            self._first[event.call_id] = now
        elif isinstance(event, CallFinished):
            self._note(event, now)
        return self.scheduler.handle(event, now)

    def _note(self, event: CallFinished, now: float) -> None:
        sent, first, tokens = self._sent.pop(event.call_id), self._first.pop(event.call_id), event.output_tokens or 0
        if sent < self.scene.warm_seconds:
            return
        self.ttft.append(first - sent)
        if tokens > 1:
            self.itl.append((now - first) / (tokens - 1))

    def _known(self, workflows: Iterator[WorkflowShape]) -> Iterator[WorkflowShape]:
        for workflow in workflows:
            self.isolated[workflow.id] = isolated_seconds(workflow, self.costs)
            yield workflow

    def run(self) -> Outcome:
        """All of it."""
        scene, engine, world = self.scene, self.engine, self.world
        slow = [0.0, 0.0]

        def watch(run: object) -> None:
            if engine.now > scene.warm_seconds:
                cost, seconds = run.cost, run.end - run.start  # type: ignore[attr-defined]
                slow[0] += seconds
                slow[1] += seconds if cost.watts < cost.demand_watts else 0.0

        engine.watch = watch
        workflows = self._known(stream(scene.workload, random.Random(scene.seed)))
        self.player.poisson(workflows, scene.rate, scene.seconds, random.Random(scene.seed + 1))
        if self.caps is not None:
            self.caps.start()
        world.time.run(until=scene.warm_seconds)
        joules, tokens = engine.meter.joules, engine.totals.generation_tokens
        end = scene.seconds + DRAIN_SECONDS
        world.time.run(until=end)
        played = [each for each in self.player.played if each.arrived_at >= scene.warm_seconds]
        begun = sum(1 for _ in self.isolated) - len(self.player.played)
        return Outcome(
            engine.meter.joules - joules,
            engine.totals.generation_tokens - tokens,
            tuple(self.ttft),
            tuple(self.itl),
            tuple(each.seconds / self.isolated[each.workflow.id] for each in played),
            begun,
            slow[0] / (end - scene.warm_seconds),
            slow[1] / max(slow[0], 1e-9),
            *(() if self.caps is None else self.caps.told()),
        )


class Caps:
    """The controller's place in a gateway: what happens is told to the window maker, the model and the controller."""

    def __init__(self, stage: Stage, play: Play) -> None:
        assert play.rules is not None, "the controller needs rules"
        self._stage = stage
        self._rules = play.rules
        self._kept = play.every_decision
        scene, calibration, engine = stage.scene, stage.calibration, stage.engine
        self._learns = play.prior_off is not None
        prior = prior_of(calibration)
        if play.prior_off is not None:
            prior = off(prior, play.prior_off, random.Random(scene.seed))
        self.model = EnergyModel(prior)
        front = calibration.frontend.input_seconds + calibration.frontend.output_seconds
        maker = WindowMaker("twin", 0.0, WindowRule(2.4, front))
        self.watch = Watch(stage, engine, maker, Sight(streamed_share=1.0), scene.seed + 7, self._window)
        self.recent = Recent(play.rules)
        self.controller = CapController("twin", play.rules)
        self.savings = Savings(calibration.card.gpus)
        self.device = TwinDevice(engine, lambda: stage.world.time.now)
        self._ups: list[str] = []
        self._watt_seconds = 0.0
        self._moves = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """To the watch, and what it says of latencies to `recent`."""
        limit = self._stage.engine.limit.in_force_watts(now)
        if isinstance(event, CallArrived):
            self.recent.sent(event.call_id, now)  # passthrough: it is sent at once
        elif isinstance(event, FirstToken):
            self.recent.first_token(event.call_id, now, limit)
        elif isinstance(event, CallFinished):
            self.recent.finished(event.call_id, event.output_tokens, now, limit)
        return self.watch.handle(event, now)

    def start(self) -> None:
        """Begin to look and to decide."""
        time = self._stage.world.time
        self.watch.start(time)
        time.at(time.now + self._rules.interval_seconds, self._decide)

    def _window(self, window: Window) -> None:
        if self._learns:
            self.model.learn(window)
        self.recent.window(window)
        standing = self.controller.standing
        if window.end > self._stage.scene.warm_seconds:
            self.savings.saw(window, standing.prior_watts if standing.ours else None, self.model)

    def _decide(self) -> None:
        stage, time, rules = self._stage, self._stage.world.time, self._rules
        now = time.now
        decision = self.controller.decide(now, self._view(now), self.model)
        if self._kept is not None:
            self._kept.append(decision)
        if isinstance(decision.action, SetCap):
            limits = self.device.limits()
            clamped = limits.clamp(decision.action.watts)
            self.device.set_limit_watts(clamped)
            applied = self.device.limits().requested_watts
            self.controller.applied(CapApplied("twin", decision.action.watts, clamped, applied, now))
        if now > stage.scene.warm_seconds:
            self._moves += decision.move != "stay"
            if decision.move == "up":
                self._ups.append(decision.why)
            if now <= stage.scene.seconds:
                self._watt_seconds += self.device.limits().requested_watts * rules.interval_seconds
        time.at(now + rules.interval_seconds, self._decide)

    def _view(self, now: float) -> EngineView:
        stage, engine, recent = self._stage, self._stage.engine, self.recent
        limits = self.device.limits()
        assert limits.enforced_watts is not None and limits.default_watts is not None
        card, last = stage.calibration.card, recent.last_window_end
        return EngineView(
            "twin",
            card.gpus,
            CardLimits(
                limits.requested_watts, limits.enforced_watts, limits.default_watts, limits.lowest_watts,
                limits.highest_watts,
            ),
            recent.load(now),
            recent.ttft,
            recent.itl,
            float(len(engine.requests) - len(engine.running)),
            None if last is None else now - last,
            self._slack(now),
            SETTLE_SHARE * card.settle_seconds,
            stage.calibration.engine.max_num_seqs,
            card.sm_clock_max_mhz,
        )  # fmt: skip

    def _slack(self, now: float) -> Slack | None:
        """The tightest workflow of the gateway's own book."""
        tightest: Slack | None = None
        for workflow in self._stage.scheduler.workflows.tables.live():
            if workflow.deadline_at is None or not workflow.live_calls:
                continue
            end = workflow.projected_end(now)
            slack = Slack(end - now, workflow.deadline_at - end)
            if slack.slack_seconds < -0.5 * slack.remaining_seconds:
                continue
            if tightest is None or slack.bears < tightest.bears:
                tightest = slack
        return tightest

    def told(self) -> tuple[int, tuple[str, ...], float, tuple[float, float, float], float]:
        """The last fields of an Outcome."""
        counted = self._stage.scene.seconds - self._stage.scene.warm_seconds
        saved = self.savings
        return self._moves, tuple(self._ups), self._watt_seconds / counted, saved.saved, saved.claimed_seconds


def _over(values: tuple[float, ...], target: float) -> float:
    return sum(value > target for value in values) / max(len(values), 1)


WORKLOADS = tuple(kind for kind in KINDS if kind != "chat")
