"""`joulegate-bench energy-bill`: does each call, and each workflow, pay what it really used?"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.prior import prior_of
from backends.twin.virtual import World
from bench.energy.bill_parts import Told, parts
from bench.energy.bill_truth import Truth
from bench.energy.play import off
from bench.energy.watch import Sight, Watch
from bench.programs import BenchError
from bench.twin.play import Player, calls_per_workflow
from scheduler.actions import Dispatch
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.bill import Bill
from scheduler.energy.bill_prices import tariff_of
from scheduler.energy.model import EnergyModel
from scheduler.energy.windows import WindowMaker, WindowRule
from scheduler.events import CallArrived, CallFinished, EngineSpec
from workloads.shapes import KINDS, stream

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from bench.energy.bill_parts import Part
    from scheduler.actions import Action
    from scheduler.energy.bill_split import Side
    from scheduler.energy.window import Window
    from scheduler.events import Event
    from workloads.shapes import WorkflowShape

CALL_ERROR_MAX, WORKFLOW_ERROR_MAX = 0.05, 0.02
WARM_SECONDS = 60.0
QUIET_SECONDS = 15.0
"""An engine that was just started waits for its first call."""
SHARED_TOKENS_LEAST = 256
"""A shorter beginning is not looked for."""


SIGHTS = {
    "nothing": Sight(cached_reported=True, prefixes_known=True),
    "beginnings": Sight(cached_reported=True),
    "cached": Sight(),
}
"""By what the gateway is blind to."""


class Scene(NamedTuple):
    """What is played, and what the gateway knows."""

    workload: str = "composite"
    seed: int = 1
    calibration: str = "h200-llama-3.1-8b"
    calls_per_second: float = 6.0
    seconds: float = 300.0
    prices: str = "live"
    """`live`: the model; `given`: the twin's own."""
    prior_off: float = 0.3
    """Of each coefficient that the live model begins with."""
    sight: Sight = SIGHTS["nothing"]


class Row(NamedTuple):
    """How far bills are from the truth; errors are relative, without sign, their means."""

    workload: str
    seed: int
    prices: str
    calls: int
    call_error: float
    call_p90: float
    estimate_error: float
    """Of what is said at a call's end."""
    covered: float
    """Share of calls whose interval holds the truth."""
    workflows: int
    workflow_error: float
    workflow_p90: float
    workflow_by_joules: float
    """The same, workflows counting by their joules and not by their number."""
    bias: float
    """Billed over true, of all of them together, less 1."""
    residual: float
    """Share of the counter's joules that nobody was billed, without sign, over all windows."""
    bill_us: float
    """CPU time of the bill a call, its windows included."""


class Scenes:
    """One scene: a gateway's bill in virtual time, and the truth beside it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        rng = random.Random(scene.seed)
        calibration = calibrations.load(scene.calibration)
        self.engine = engine = TwinEngine(calibration)
        self.truth = Truth(engine)
        self.bill = Bill()
        prior = prior_of(calibration)
        self.model = EnergyModel(prior if scene.prices == "given" else off(prior, scene.prior_off, rng))
        self.seconds = 0.0
        self.joules: dict[str, tuple[float, float, float]] = {}
        self.estimates: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self.sides: list[Side] = []
        self.told = Told()
        front = calibration.frontend.input_seconds + calibration.frontend.output_seconds
        self._maker = maker = WindowMaker("twin", 0.0, WindowRule(2.4, front))
        scheduler = Scheduler(SchedulerConfig((EngineSpec("twin", 4096),), "passthrough"), 0.0)
        self.watch = Watch(scheduler, engine, maker, scene.sight, scene.seed + 7, self._window)
        self.world = World(self, {"twin": engine})
        self.player = Player(self.world)
        self._arrived: dict[str, CallArrived] = {}
        self._marks: dict[str, tuple[tuple[str, float], ...]] = {}
        self.watch.prefixes_of = lambda call_id: self._marks.get(call_id, ())

    def run(self) -> Row:
        """All of it."""
        scene, time_ = self.scene, self.world.time
        self.bill.priced("twin", tariff_of(self.model), simulated=True)
        self.watch.start(time_)
        rng = random.Random(scene.seed + 2)
        rate = scene.calls_per_second / calls_per_workflow(stream(scene.workload, random.Random(0)))
        workflows = self._known(stream(scene.workload, random.Random(scene.seed + 1)))
        time_.at(QUIET_SECONDS, lambda: self.player.poisson(workflows, rate, scene.seconds - QUIET_SECONDS, rng))
        time_.run(until=scene.seconds + 60.0)
        self.bill.validate()
        return self._row()

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler's place in the world: the windows and the bill are told."""
        actions = self.watch.handle(event, now)
        if isinstance(event, CallArrived):
            self._arrived[event.call_id] = event
        for action in actions:
            if isinstance(action, Dispatch):
                arrived = self._arrived.pop(action.call_id)
                marks = self._marks[action.call_id] if self.scene.sight.prefixes_known else ()
                started = time.process_time()
                self.bill.dispatched(action.call_id, "-", arrived.workflow_id, "m", "twin", now, marks)
                self.seconds += time.process_time() - started
        if isinstance(event, CallFinished):
            cached = event.cached_tokens if self.scene.sight.cached_reported else None
            started = time.process_time()
            guess = self.bill.ended(event.call_id, event.prompt_tokens, cached, event.output_tokens, now)
            self.seconds += time.process_time() - started
            self.finished[event.call_id] = now
            if guess is not None and guess.joules is not None:
                self.estimates[event.call_id] = guess.joules
        return actions

    def _window(self, window: Window) -> None:
        if self.scene.prices != "given":
            self.model.learn(window)
        tariff = tariff_of(self.model, window)
        self.told.window(window, tariff)
        started = time.process_time()
        closed = self.bill.close(window, tariff)
        self.seconds += time.process_time() - started
        self._maker.paced(self.bill.engines["twin"].pace(window))
        closed.bill.validate()
        if window.end > WARM_SECONDS:
            self.sides.append(closed.bill.gpu)

    def _known(self, workflows: Iterator[WorkflowShape]) -> Iterator[WorkflowShape]:
        """Notes how each prompt begins, up to its last part."""
        for workflow in workflows:
            for call in workflow.calls:
                marks, tokens, names = [], 0, ""
                for part in call.prompt[:-1]:
                    tokens += part.tokens
                    names = f"{names}|{part.text}"
                    if tokens >= SHARED_TOKENS_LEAST:
                        marks.append((names, float(tokens)))
                call_id = f"{workflow.id}/{call.node}"
                self._marks[call_id] = tuple(marks)
                self.truth.call(call_id, tuple(marks))
            yield workflow

    def parts(self) -> list[Part]:
        """What each part of the bill costs, of a scene that was played."""
        calls = [call_id for call_id, at in self.finished.items() if at > WARM_SECONDS]
        known = set(calls)
        workflows = [
            [f"{played.workflow.id}/{call.node}" for call in played.workflow.calls]
            for played in self.player.played
            if played.arrived_at >= WARM_SECONDS
        ]
        return parts(self, calls, [ids for ids in workflows if known.issuperset(ids)])

    def _row(self) -> Row:
        scene = self.scene
        calls, guesses, covered = [], [], 0
        late = {call_id for call_id, at in self.finished.items() if at > WARM_SECONDS}
        for call_id in late:
            bill = self.bill.call(call_id)
            if bill is None or not bill.settled or bill.marginal_joules is None:
                continue
            true = self.truth.of(call_id)
            calls.append(bill.marginal_joules / true - 1)
            covered += (bill.low_joules or 0.0) <= true <= (bill.high_joules or 0.0)
            guesses.append(abs(self.estimates[call_id] / true - 1))
        workflows, billed, used, off_joules = [], 0.0, 0.0, 0.0
        for played in self.player.played:
            ids = [f"{played.workflow.id}/{call.node}" for call in played.workflow.calls]
            if played.arrived_at < WARM_SECONDS or any(call_id not in self.finished for call_id in ids):
                continue
            figure = self.bill.workflow("-", played.workflow.id)
            true = sum(self.truth.of(call_id) for call_id in ids)
            joules = figure.marginal_joules or 0.0
            billed, used = billed + joules, used + true
            off_joules += abs(joules - true)
            workflows.append(abs(joules / true - 1))
        errors = sorted(map(abs, calls))
        workflows.sort()
        counter = sum(side.counter for side in self.sides)
        return Row(
            scene.workload, scene.seed, scene.prices, len(calls),
            sum(errors) / len(errors), errors[int(0.9 * len(errors))], sum(guesses) / len(guesses),
            covered / len(calls), len(workflows), sum(workflows) / len(workflows),
            workflows[int(0.9 * len(workflows))], off_joules / used, billed / used - 1,
            sum(abs(side.residual) for side in self.sides) / counter, self.seconds / self.player.calls * 1e6,
        )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `energy-bill`."""
    parser.add_argument("--seconds", type=float, default=300.0, help="simulated arrivals of each scene (default: 300)")
    parser.add_argument("--rate", type=float, default=6.0, metavar="CALLS", help="calls a second (default: 6)")
    parser.add_argument("--seeds", type=int, default=3, help="scenes of each workload (default: 3)")
    parser.add_argument("--workload", choices=("composite", *KINDS), help="one alone")
    parser.add_argument(
        "--prices", choices=("live", "given"), default="live", help="the live model's, or the twin's own"
    )
    parser.add_argument(
        "--prior-off", type=float, default=0.3, metavar="SHARE",
        help="of each coefficient that the live model begins with (default: 0.3; 0: the prior is right)",
    )  # fmt: skip
    parser.add_argument(
        "--blind", choices=tuple(SIGHTS), default="nothing",
        help="what the gateway does not see: prompts' beginnings, or those and what was cached (default: nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", action="store_true", help="also what each part costs, a call and a workflow, the others being true"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 1 if a workload is billed worse than asked for. BenchError for options that are no use."""
    if not (args.seconds > 2 * WARM_SECONDS and args.rate > 0 and args.seeds > 0 and 0 <= args.prior_off < 1):
        raise BenchError(
            f"--seconds must be above {2 * WARM_SECONDS:g}, --rate and --seeds above 0, --prior-off below 1"
        )
    names = (args.workload,) if args.workload else ("composite", *KINDS)
    rows = []
    print(
        f"{'workload':<12}{'seed':>5}{'calls':>7}{'call':>8}{'p90':>8}{'at end':>8}{'covered':>9}{'workflows':>11}"
        f"{'workflow':>10}{'p90':>8}{'by joules':>11}{'bias':>9}{'residual':>10}{'µs a call':>11}"
    )
    for name in names:
        for seed in range(1, args.seeds + 1):
            scene = Scenes(
                Scene(
                    name, seed, calls_per_second=args.rate, seconds=args.seconds, prices=args.prices,
                    prior_off=args.prior_off, sight=SIGHTS[args.blind],
                )
            )  # fmt: skip
            row = scene.run()
            rows.append(row)
            print(
                f"{row.workload:<12}{row.seed:>5}{row.calls:>7}{row.call_error:>8.2%}{row.call_p90:>8.2%}"
                f"{row.estimate_error:>8.2%}{row.covered:>9.1%}{row.workflows:>11}{row.workflow_error:>10.2%}"
                f"{row.workflow_p90:>8.2%}{row.workflow_by_joules:>11.2%}{row.bias:>+9.2%}{row.residual:>10.2%}{row.bill_us:>11.1f}"
            )
            for part in scene.parts() if args.parts else ():
                print(f"{'':>12}wrong alone: {part.name:<18}{part.call_error:>8.2%}{part.workflow_error:>8.2%}")
    if args.json:
        args.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    bad = [row for row in rows if row.call_error > CALL_ERROR_MAX or row.workflow_error > WORKFLOW_ERROR_MAX]
    if bad:
        print(f"over {CALL_ERROR_MAX:.0%} a call or {WORKFLOW_ERROR_MAX:.0%} a workflow: {len(bad)} of {len(rows)}")
    return 1 if bad else 0
