"""`joulegate-bench energy-cost`: how long does the gateway's loop work on energy, a call?"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from bench.programs import BenchError
from scheduler.energy.desk import EnergyDesk, EnergyRules
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import CallArrived, CallFinished

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

CALIBRATION = "h200-llama-3.1-8b"
PROBE_SECONDS = 0.5
FIRST_TOKEN_SECONDS = 0.05
PROMPT, CACHED, OUTPUT = 1000, 200, 100
COST_MAX_US = 10.0
_clock = time.thread_time


class Load(NamedTuple):
    """Calls that come at regular times; every second is a stream."""

    calls_per_second: float
    stay_seconds: float
    seconds: float


LOADS = (Load(20.0, 7.0, 60.0), Load(200.0, 1.5, 30.0), Load(1000.0, 0.3, 8.0))
WHAT = ("arrival", "first token", "answer", "end", "probes", "samples")


class Spent:
    """Microseconds a call by what they were for, the clock's own taken off."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(WHAT, 0.0)
        self._own = min(self._empty() for _ in range(20))

    @staticmethod
    def _empty() -> float:
        started = _clock()
        for _ in range(1000):
            _clock()
        return (_clock() - started) / 1000

    def of(self, what: str, do: Callable[..., object], *to: object) -> None:
        """Do it and count."""
        started = _clock()
        do(*to)
        self.seconds[what] += _clock() - started - self._own


def events(load: Load) -> Iterator[tuple[float, str, int]]:
    """(when, what, which call) in order."""
    found: list[tuple[float, str, int]] = []
    count = int(load.calls_per_second * load.seconds)
    for number in range(count):
        at = number / load.calls_per_second
        found.append((at, "arrival", number))
        if number % 2:
            found.append((at + FIRST_TOKEN_SECONDS, "first token", number))
        found.append((at + load.stay_seconds, "end", number))
    probes = int((load.seconds + load.stay_seconds) / PROBE_SECONDS) + 8
    found += [(number * PROBE_SECONDS, "probes", number) for number in range(probes)]
    yield from sorted(found)


def play(load: Load, *, measured: bool) -> dict[str, float]:
    """Microseconds a call. `measured`: the engine has a meter and a model, as where anything is told of its energy."""
    desk, spent = EnergyDesk(EnergyRules(), (), 0.0), Spent()
    if measured:
        desk.believe("e", prior_of(calibrations.load(CALIBRATION)), None, 0.0, simulated=True)
    arrived = [
        CallArrived(f"c{number}", "k", "m", f"w{number // 6}", PROMPT, 2 * OUTPUT, streamed=number % 2 == 1)
        for number in range(int(load.calls_per_second * load.seconds))
    ]
    live: dict[int, float] = {}
    ended, before, steps, joules = 0, 0.0, 0.0, 0.0
    for at, what, number in events(load):
        call_id = f"c{number}"
        if what == "arrival":
            event = arrived[number]
            spent.of(what, desk.admit, event, at)
            spent.of(what, desk.sent, event, "e", at)
            live[number] = at
        elif what == "first token":
            spent.of(what, desk.first_token, call_id, "e", at)
        elif what == "end":
            spent.of("answer", desk.guess, call_id, PROMPT, CACHED, OUTPUT, at)
            spent.of(what, desk.finished, CallFinished(call_id, PROMPT, CACHED, OUTPUT), "e", at)
            del live[number]
            ended += 1
        elif measured:
            steps, joules, before = steps + 60.0 * (at - before), joules + 500.0 * (at - before), at
            seen = [(f"c{one}", int(60 * (at - since))) for one, since in live.items() if one % 2]
            counters = Counters(at, steps, float(PROMPT * ended), None, float(OUTPUT * ended), float(len(live)), 0.0)
            spent.of(what, desk.counted, "e", counters, seen, at)
            sample = MeterSample(at + 0.001, Energy(joules), 500.0, 700.0)
            spent.of("samples", desk.sampled, "e", sample, sample.at)
    desk.validate()
    return {what: 1e6 * seconds / len(arrived) for what, seconds in spent.seconds.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `energy-cost`."""
    parser.add_argument("--passes", type=int, default=5, help="the best of so many is said (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 1 if a call costs more than asked for. BenchError for options that are no use."""
    if args.passes < 1:
        raise BenchError("--passes must be at least 1")
    print(
        f"{'calls/s':>8}{'stay s':>8}"
        + "".join(f"{what:>13}" for what in WHAT)
        + f"{'µs a call':>12}{'unmeasured':>12}"
    )
    worst = 0.0
    for load_ in LOADS:
        gc.collect()
        passes = [play(load_, measured=True) for _ in range(args.passes)]
        best = {what: min(one[what] for one in passes) for what in WHAT}
        without = min(sum(play(load_, measured=False).values()) for _ in range(args.passes))
        total = sum(best.values())
        worst = max(worst, total)
        print(
            f"{load_.calls_per_second:>8g}{load_.stay_seconds:>8g}"
            + "".join(f"{best[what]:>13.2f}" for what in WHAT)
            + f"{total:>12.1f}{without:>12.2f}"
        )
    if worst > COST_MAX_US:
        print(f"over {COST_MAX_US:g} µs a call")
    return 1 if worst > COST_MAX_US else 0
