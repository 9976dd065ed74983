"""`joulegate-bench twin-live`: workflows and bursts on a real engine beside its card's counters, for twin-check.

Reads NVML and changes nothing of the card.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from bench.programs import BenchError
from bench.twin import probe
from bench.twin.crowd import CALL_COLUMNS, Answer, Crowd, Rule, Run
from bench.twin.watch import NvmlCard, TwinCard, Watch
from bench.twin.wire import Wire, ids_of, session
from workloads.shapes import Part, stream

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from backends.twin.calibration import Calibration
    from bench.twin.watch import Card
    from bench.twin.wire import Heard

WARM_CALLS = 64
SETTLE_SECONDS = 3.0
IDLE_SECONDS = 4.0
PROBE = "probe:"
MORE_WORKFLOWS = 1.5
"""So many times as many as are expected are made ready before a run."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `twin-live`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="WORKLOAD:RATE[:SLACK]|probe:NAME",
        help=f"as chain:4, composite:4:3 or probe:bursts (probes: {', '.join(probe.names())})",
    )
    parser.add_argument("--engine", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX", help="NVML's index of its card (default: 0)")
    parser.add_argument("--simulated", action="store_true", help="the engine is a joulegate twin: ask it, not NVML")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, each run (default: 60)")
    parser.add_argument("--seed", default="1", metavar="N[,N…]", help="each run is played with each (default: 1)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="all of it so many times (default: 1)")
    parser.add_argument(
        "--same-prompts",
        action="store_true",
        help="runs of one workload and seed have the same prompts, so that the second finds the first's in the cache",
    )
    parser.add_argument("--stream", action="store_true", help="stream answers, to see first tokens (see --record)")
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", help="whose times the holding rule believes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="rows, written after each run")
    parser.add_argument(
        "--record", type=Path, metavar="FILE.jsonl", help="a line a run: every call, the card and /metrics over time"
    )
    parser.add_argument("--card-seconds", type=float, default=0.1, help="between readings of the card (default: 0.1)")
    parser.add_argument(
        "--metrics-seconds", type=float, default=0.5, help="between readings of /metrics (default: 0.5)"
    )
    parser.add_argument("--last-start", type=float, metavar="SECONDS", help="begin no run later than this")


def run(args: argparse.Namespace) -> int:
    """Play the runs one after the other. BenchError if the engine or the card cannot be reached."""
    try:
        calibration = calibrations.load(args.calibration)
        plan = _plan(args)
    except (CalibrationError, ValueError) as error:
        raise BenchError(str(error)) from None
    if args.record is not None:
        args.record.write_text("", encoding="utf-8")
    asyncio.run(_Session(args, calibration).play(plan))
    return 0


def _plan(args: argparse.Namespace) -> list[Run | str]:
    """Each repeat plays everything, so that what was cut off has at least one of each."""
    try:
        seeds = [int(seed) for seed in args.seed.split(",")]
    except ValueError:
        raise ValueError(f"--seed: {args.seed!r} is not like 1 or 1,2,3") from None
    plan: list[Run | str] = []
    command = secrets.token_hex(3)  # an engine that outlives it has its prompts in the cache
    for _ in range(args.repeats):
        for text in args.runs:
            if text.startswith(PROBE):
                plan.append(text.removeprefix(PROBE))
                if plan[-1] not in probe.names():
                    raise ValueError(f"runs: {text!r}: the probes are {', '.join(probe.names())}")
        for seed in seeds:
            for text in args.runs:
                if not text.startswith(PROBE):
                    salt = "" if args.same_prompts else f"{command} {len(plan)}"
                    plan.append(_run_of(text, args.seconds, seed, salt))
    return plan


def _run_of(text: str, seconds: float, seed: int, salt: str) -> Run:
    workload, _, rest = text.partition(":")
    rate, _, slack = rest.partition(":")
    try:
        rule = Rule(float(slack)) if slack else Rule()
        next(stream(workload, random.Random(seed)))
        return Run(workload, float(rate), seconds, seed, rule, salt)
    except (ValueError, KeyError):
        raise ValueError(f"runs: {text!r} is not like chain:4, chain:4:3 or probe:bursts") from None


class _Stage:
    """The stage that is real: the event loop's clock, and an engine behind HTTP."""

    def __init__(self, wire: Wire, *, streamed: bool) -> None:
        self._wire = wire
        self._streamed = streamed

    @property
    def now(self) -> float:
        return self._wire.loop.time()

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._wire.loop.call_at(time, action)

    def send(self, prompt: tuple[Part, ...], output_tokens: int, done: Callable[[Answer], None]) -> None:
        def heard(each: Heard) -> None:
            done(each.answer)

        _ = self._wire.start(prompt, output_tokens, heard, stream=self._streamed)


class _Session:
    """All runs of one command."""

    def __init__(self, args: argparse.Namespace, calibration: Calibration) -> None:
        self.args = args
        self.calibration = calibration
        self.rows: list[dict[str, Any]] = []
        self.static: dict[str, Any] = {}

    async def play(self, plan: list[Run | str]) -> None:
        started_at = time.monotonic()
        async with session() as http:
            wire = await Wire.open(http, self.args.engine)
            card: Card = TwinCard(http, self.args.engine) if self.args.simulated else NvmlCard(self.args.gpu)
            await self._warm_up(wire, card)
            for each in plan:
                last = self.args.last_start
                if last is not None and time.monotonic() - started_at > last:
                    print(f"not begun within {last:g} s: {each}", flush=True)
                    continue
                await asyncio.sleep(SETTLE_SECONDS)
                await self._play(each, wire, card)
                if wire.failed:
                    raise BenchError(f"{len(wire.failed)} calls failed, as: {wire.failed[0]}")

    async def _warm_up(self, wire: Wire, card: Card) -> None:
        await asyncio.gather(*(wire.ask([Part(f"warm {number}", 64)], 64) for number in range(WARM_CALLS)))
        await asyncio.sleep(SETTLE_SECONDS)
        joules, at = await card.joules(), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        idle_watts = (await card.joules() - joules) / (time.monotonic() - at)
        self.static = {**card.about, "idle_loaded_w": round(idle_watts, 1), "measured_unix_seconds": time.time()}

    async def _play(self, each: Run | str, wire: Wire, card: Card) -> None:
        watch = Watch(wire, card, self.args.card_seconds, self.args.metrics_seconds)
        if isinstance(each, str):
            async with watch:
                await probe.play(each, wire, self._tell)
            self._record({"probe": each, **watch.document()})
            return
        crowd, row = await self._play_run(each, wire, card, watch)
        self._tell(row)
        calls = {"started_at": crowd.started_at, "columns": CALL_COLUMNS, "rows": crowd.calls}
        self._record({"row": row, "calls": calls, **watch.document()})

    async def _play_run(self, run: Run, wire: Wire, card: Card, watch: Watch) -> tuple[Crowd, dict[str, Any]]:
        _make_ready(run)
        async with watch:
            before = await card.joules()
            done = asyncio.Event()
            crowd = Crowd(_Stage(wire, streamed=self.args.stream), run, self.calibration, done.set)
            await done.wait()
            until = wire.loop.time()
            row = crowd.summary(await card.joules() - before, until)
        if self.args.stream:
            row["streamed"] = True
        return crowd, row

    def _tell(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(json.dumps({name: value for name, value in row.items() if not isinstance(value, list)}), flush=True)
        self.args.out.write_text(json.dumps({"static": self.static, "rows": self.rows}), encoding="utf-8")

    def _record(self, document: dict[str, Any]) -> None:
        if self.args.record is not None:
            with self.args.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document) + "\n")


def _make_ready(run: Run) -> None:
    """Make the prompts before they are due: that would take longer than sending them."""
    workflows = stream(run.workload, random.Random(run.seed))
    calls_left = int(run.rate * run.seconds * MORE_WORKFLOWS)
    for workflow in islice(workflows, calls_left):
        for call in workflow.calls:
            for part in run.prompt(call):
                ids_of(part)
        calls_left -= len(workflow.calls)
        if calls_left < 0:
            return
