"""One scene on the twin: traffic, caps, another model behind the engine; what was predicted and what was measured."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.cost import CostModel
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.energy.oracle import Oracle
from bench.energy.report import Reporter
from bench.energy.watch import Sight, Watch
from bench.twin.play import Player, calls_per_workflow
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.model import CapPrior, EnergyModel, Prices, Prior
from scheduler.energy.stays import pace_of
from scheduler.energy.windows import WindowMaker, WindowRule
from scheduler.events import EngineSpec
from workloads.shapes import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.twin.calibration import Calibration
    from scheduler.energy.window import Window
    from workloads.shapes import WorkflowShape


class Scene(NamedTuple):
    """What is played."""

    calibration: str = "h200-llama-3.1-8b"
    swap_to: str | None = None
    workload: str = "composite"
    rates: tuple[float, ...] = (0.5, 2.0, 6.0, 16.0)
    """Calls a second; one is drawn for each stretch of 20 to 60 seconds, 0 among them now and then."""
    cap_watts: tuple[float, ...] = ()
    """Limits of each card; one is drawn for each stretch of 60 s. Empty: the default stays."""
    traffic_seconds: float = float("inf")
    """After that nobody comes any more."""
    seconds: float = 4200.0
    swap_seconds: float = 600.0
    seed: int = 1
    prior_off: float = 0.3
    window_seconds: float = 2.4
    sight: Sight = Sight()


def off(prior: Prior, share: float, rng: random.Random) -> Prior:
    """Each coefficient wrong by this share, up or down."""

    def wrong(value: float) -> float:
        return value * (1 + share * rng.choice((-1, 1)))

    return replace(
        prior,
        time=Prices(*map(wrong, prior.time)),
        energy=Prices(*map(wrong, prior.energy)),
        idle_watts=wrong(prior.idle_watts),
        prompt_seconds=wrong(prior.prompt_seconds),
        cap=CapPrior(
            prior.cap.onset,
            wrong(prior.cap.decode_exponent),
            wrong(prior.cap.prefill_exponent),
            prior.cap.draw,
            prior.cap.average_seconds * (1 + share),
        ),
        time_uncertainty=max(share, prior.time_uncertainty),
        energy_uncertainty=max(share, prior.energy_uncertainty),
        idle_uncertainty=max(share, prior.idle_uncertainty),
        cap_uncertainty=max(share, prior.cap_uncertainty),
    )


class Play:
    """One scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.windows: list[Window] = []
        rng = random.Random(scene.seed)
        self._random = rng
        calibration = calibrations.load(scene.calibration)
        self.engine = TwinEngine(calibration)
        self.model = EnergyModel(off(prior_of(calibration), scene.prior_off, rng))
        front = calibration.frontend.input_seconds + calibration.frontend.output_seconds
        self.maker = WindowMaker("twin", 0.0, WindowRule(scene.window_seconds, front))
        scheduler = Scheduler(SchedulerConfig((EngineSpec("twin", 4096),), "passthrough"), 0.0)
        self.watch = Watch(scheduler, self.engine, self.maker, scene.sight, scene.seed + 7, self._window)
        oracle = Oracle(prior_of(calibration), calibration)
        self.report = Reporter(self.model, oracle, self.watch.joules_at_probe)
        self.rows = self.report.rows
        self.world = World(self.watch, {"twin": self.engine})
        self.player = Player(self.world)
        self._prefixes: dict[str, tuple[tuple[str, float]]] = {}
        self.watch.prefixes_of = lambda call_id: self._prefixes.get(call_id, ())
        self._workflows = self._known(stream(scene.workload, random.Random(scene.seed + 1)))
        self._per_workflow = calls_per_workflow(stream(scene.workload, random.Random(0)))

    def run(self) -> Play:
        """All of it."""
        scene, time = self.scene, self.world.time
        self.watch.start(time)
        self._stretch()
        if scene.cap_watts:
            self._cap()
        time.run(until=scene.seconds)
        if scene.swap_to is not None:
            self._swap(calibrations.load(scene.swap_to))
            time.run(until=scene.seconds + scene.swap_seconds)
        return self

    def _swap(self, other: Calibration) -> None:
        """Another model behind the same engine, card and limits."""
        engine = self.engine
        engine.calibration = engine.calibration.model_copy(update={"time": other.time, "energy": other.energy})
        engine.costs = CostModel(engine.calibration)
        self.report.oracle = Oracle(prior_of(engine.calibration), engine.calibration)

    def _stretch(self) -> None:
        rng, time = self._random, self.world.time
        if time.now >= self.scene.traffic_seconds:
            return
        seconds = rng.uniform(20.0, 60.0)
        if rng.random() > 0.1:
            rate = rng.choice(self.scene.rates) / self._per_workflow
            self.player.poisson(self._workflows, rate, seconds, rng)
        time.at(time.now + seconds, self._stretch)

    def _cap(self) -> None:
        time = self.world.time
        watts = self._random.choice(self.scene.cap_watts) * self.engine.calibration.card.gpus
        self.engine.set_limit_watts(watts, time.now)
        time.at(time.now + 60.0, self._cap)

    def _known(self, workflows: Iterator[WorkflowShape]) -> Iterator[WorkflowShape]:
        """Notes the leading parts of each prompt that other calls have too."""
        for workflow in workflows:
            for call in workflow.calls:
                shared, names = 0, []
                for part in call.prompt[:-1]:
                    shared += part.tokens
                    names.append(part.text)
                if shared >= 256:
                    self._prefixes[f"{workflow.id}/{call.node}"] = (("|".join(names), float(shared)),)
            yield workflow

    def _window(self, window: Window) -> None:
        self.windows.append(window)
        self.report.window(window)
        self.maker.paced(pace_of(self.model.prices(), window))
