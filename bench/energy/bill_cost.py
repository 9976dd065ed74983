"""`joulegate-bench energy-cost`: how long does the gateway's loop work on energy, a call and a window?"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, NamedTuple

from backends.twin import calibration as calibrations
from backends.twin.prior import prior_of
from bench.programs import BenchError
from proxy.app import GC_THRESHOLD
from scheduler.energy.desk import EnergyDesk, EnergyRules
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import CallArrived, CallFinished

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

CALIBRATION = "h200-llama-3.1-8b"
PROBE_SECONDS = 0.5
SAMPLE_SECONDS = 0.1
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


class Nothing:
    """A desk that does nothing: what the loop of this bench itself takes."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._do

    def _do(self, *_: object, **__: object) -> None: ...


class Cost(NamedTuple):
    """Of one load, microseconds of CPU time."""

    calls: int
    windows: int
    whole: float
    """Of all of it."""
    parts: dict[str, float]
    """By what they were for: with a clock around each, and what that takes."""


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
    seconds = load.seconds + load.stay_seconds + 8 * PROBE_SECONDS
    found += [(number * PROBE_SECONDS, "probes", number) for number in range(int(seconds / PROBE_SECONDS))]
    found += [(number * SAMPLE_SECONDS + 0.001, "samples", number) for number in range(int(seconds / SAMPLE_SECONDS))]
    yield from sorted(found)


def play(load: Load, desk: EnergyDesk | Nothing, of: Callable[..., object]) -> float:
    """Seconds that the loop took to tell the desk of all of it. `of`: called with a part's name, and what to do."""
    desk.believe("e", prior_of(calibrations.load(CALIBRATION)), None, 0.0, simulated=True)
    arrived = [
        CallArrived(f"c{number}", "k", "m", f"w{number // 6}", PROMPT, 2 * OUTPUT, streamed=number % 2 == 1)
        for number in range(int(load.calls_per_second * load.seconds))
    ]
    live: dict[int, float] = {}
    ended, steps, in_order = 0, 0.0, [*events(load)]
    gc.collect()
    started = _clock()
    for at, what, number in in_order:
        call_id = f"c{number}"
        if what == "arrival":
            event = arrived[number]
            of(what, desk.admit, event, at)
            of(what, desk.sent, event, "e", at)
            live[number] = at
        elif what == "first token":
            of(what, desk.first_token, call_id, "e", at)
        elif what == "end":
            of("answer", desk.guess, call_id, PROMPT, CACHED, OUTPUT, at)
            of(what, desk.finished, CallFinished(call_id, PROMPT, CACHED, OUTPUT), "e", at)
            del live[number]
            ended += 1
        elif what == "probes":
            steps = 60.0 * at
            seen = [(f"c{one}", int(60 * (at - since))) for one, since in live.items() if one % 2]
            counters = Counters(at, steps, float(PROMPT * ended), None, float(OUTPUT * ended), float(len(live)), 0.0)
            of(what, desk.counted, "e", counters, seen, at)
        else:
            of(what, desk.sampled, "e", MeterSample(at, Energy(500.0 * at), 500.0, 700.0), at)
    return _clock() - started


def _do(_: str, do: Callable[..., object], *to: object) -> None:
    do(*to)


def cost(load: Load, passes: int) -> Cost:
    """The least of so many passes, of the whole and of each part."""
    whole = own = float("inf")
    parts = dict.fromkeys(WHAT, float("inf"))
    for _ in range(passes):
        desk = EnergyDesk(EnergyRules(), (), 0.0)
        whole = min(whole, play(load, desk, _do))
        desk.validate()
        own = min(own, play(load, Nothing(), _do))
        spent = dict.fromkeys(WHAT, 0.0)

        def clocked(what: str, do: Callable[..., object], *to: object, spent: dict[str, float] = spent) -> None:
            started = _clock()
            do(*to)
            spent[what] += _clock() - started

        play(load, EnergyDesk(EnergyRules(), (), 0.0), clocked)
        parts = {what: min(parts[what], 1e6 * spent[what]) for what in WHAT}
    calls = int(load.calls_per_second * load.seconds)
    return Cost(calls, desk.engines["e"].windows.number, 1e6 * (whole - own), parts)


def line(costs: list[Cost]) -> tuple[float, float]:
    """(microseconds a call, microseconds a window whatever is in it): through the least and the most calls a window."""
    points = sorted((cost.calls / cost.windows, cost.whole / cost.windows) for cost in costs)
    (few, low), (many, high) = points[0], points[-1]
    each = (high - low) / (many - few)
    return each, low - each * few


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `energy-cost`."""
    parser.add_argument("--passes", type=int, default=5, help="the best of so many is said (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 1 if a further call costs more than asked for. BenchError for options that are no use."""
    if args.passes < 1:
        raise BenchError("--passes must be at least 1")
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)  # as in the gateway
    print(
        f"{'calls/s':>8}{'stay s':>8}"
        + "".join(f"{what:>13}" for what in WHAT)
        + f"{'all, a call':>13}{'ms a window':>13}"
    )
    costs = []
    for load in LOADS:
        found = cost(load, args.passes)
        costs.append(found)
        print(
            f"{load.calls_per_second:>8g}{load.stay_seconds:>8g}"
            + "".join(f"{found.parts[what] / found.calls:>13.2f}" for what in WHAT)
            + f"{found.whole / found.calls:>13.1f}{found.whole / found.windows / 1000:>13.2f}",
            flush=True,
        )
    each, fixed = line(costs)
    seconds = EnergyRules().window_seconds
    print(
        f"a further call costs {each:.1f} µs, a window {fixed / 1000:.1f} ms whatever is in it: "
        f"{fixed / 1e6 / seconds:.2%} of a core an engine"
    )
    if each > COST_MAX_US:
        print(f"over {COST_MAX_US:g} µs a call")
    return 1 if each > COST_MAX_US else 0
