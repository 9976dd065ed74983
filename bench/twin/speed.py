"""`joulegate-bench twin-speed`: how fast does virtual time pass, and does a call cost the same after a million?"""

from __future__ import annotations

import random
import time
from math import isfinite
from typing import TYPE_CHECKING

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.programs import BenchError
from bench.twin.play import Player, calls_per_workflow
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import EngineSpec
from workloads.shapes import KINDS, stream

if TYPE_CHECKING:
    import argparse

SLICES = 10
IN_FLIGHT_MAX = 4096


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `twin-speed`."""
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", metavar="NAME")
    parser.add_argument("--workload", default="composite", choices=["composite", *KINDS])
    parser.add_argument("--rate", type=float, default=16.0, metavar="CALLS", help="calls a second (default: 16)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="simulated (default: an hour)")
    parser.add_argument("--policy", default="passthrough", metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    """Simulate and print. BenchError for options that cannot be used."""
    if not (isfinite(args.rate) and isfinite(args.seconds) and args.rate > 0 and args.seconds > 0):
        raise BenchError("--rate and --seconds must be above 0")
    try:
        engine = TwinEngine(calibrations.load(args.calibration))
        config = SchedulerConfig((EngineSpec("twin", IN_FLIGHT_MAX),), args.policy)
        world = World(Scheduler(config, 0.0), {"twin": engine})
    except CalibrationError as error:
        raise BenchError(f"--calibration: {error}") from None
    except KeyError:
        raise BenchError(f"--policy: there is no policy {args.policy!r}") from None
    player = Player(world)
    rate = args.rate / calls_per_workflow(stream(args.workload, random.Random(0)))
    workflows = stream(args.workload, random.Random(args.seed))
    player.poisson(workflows, rate, args.seconds, random.Random(args.seed + 1))
    started = time.process_time()
    print(f"{'simulated s':>12}{'calls':>10}{'µs a call':>11}")
    for number in range(1, SLICES + 1):
        before, calls = time.process_time(), player.calls
        world.time.run(until=args.seconds * number / SLICES)
        spent = time.process_time() - before
        print(f"{world.time.now:>12.0f}{player.calls:>10}{1e6 * spent / max(1, player.calls - calls):>11.1f}")
    world.time.run()
    spent = time.process_time() - started
    engine.validate()
    if not player.played:
        raise BenchError("--seconds: no workflow arrived in that time")
    done, joules = len(player.played), engine.meter.joules / len(player.played)
    print(f"\n{player.calls} calls of {done} workflows, {engine.totals.steps} engine steps, {joules:.0f} J a workflow")
    print(f"(simulated by {args.calibration}): {spent:.1f} s of CPU, {world.time.now / spent:.0f} × real time")
    return 0
