"""What does the cap controller cost a gateway? Of each call, and of each decision, on the event loop."""

from __future__ import annotations

from time import perf_counter

from backends.twin import calibration as calibrations
from backends.twin.content import Piece, runs_of_pieces
from backends.twin.engine import TwinEngine
from backends.twin.request import Request
from backends.twin.telemetry import Telemetry
from backends.twin.virtual import Answer, World
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.caps import CapRules
from scheduler.events import CallArrived, EngineSpec

STREAMS = 64
PROMPT, OUTPUT = 500, 200
SECONDS = 120.0
CALLS = 20_000
PASSES = 5


def decisions_ms(calibration: str) -> list[float]:
    """Milliseconds of each decision about one engine that is busy with STREAMS streams."""
    rules = CapRules(mode="actuate", ttft_seconds_p95=5.0, itl_seconds_p95=0.1)
    scheduler = Scheduler(SchedulerConfig((EngineSpec("e", 512),), caps=rules), 0.0)
    engine = TwinEngine(calibrations.load(calibration))
    world = World(scheduler, {"e": engine})
    Telemetry(world)
    sent = 0

    def send(_: Answer | None = None) -> None:
        nonlocal sent
        sent += 1
        name = f"c{sent}"
        runs = runs_of_pieces([Piece(name, PROMPT + OUTPUT)], engine.calibration.engine.block_tokens)
        world.call(
            CallArrived(name, "-", None, "", PROMPT, OUTPUT, streamed=True), Request(name, PROMPT, OUTPUT, runs), send
        )

    for _ in range(STREAMS):
        send()
    taken: list[float] = []
    decide = scheduler.caps._decide

    def timed(now: float) -> object:
        started = perf_counter()
        found = decide(now)
        taken.append(1e3 * (perf_counter() - started))
        return found

    scheduler.caps._decide = timed  # type: ignore[method-assign,assignment]
    world.time.run(SECONDS)
    return taken


def call_us() -> float:
    """Microseconds of one call: sent, first token, finished. The best of some passes."""
    from scheduler.energy.caps.recent import Recent

    best = float("inf")
    for _ in range(PASSES):
        recent = Recent(CapRules(ttft_seconds_p95=1.0, itl_seconds_p95=0.05))
        names = [f"call-{number}" for number in range(CALLS)]
        started = perf_counter()
        for number, name in enumerate(names):
            now = 0.01 * number
            recent.sent(name, now)
            recent.first_token(name, now + 0.05 + number % 7 * 0.01, 700.0)
            recent.finished(name, 200, now + 2.0 + number % 11 * 0.1, 700.0)
        best = min(best, 1e6 * (perf_counter() - started) / CALLS)
    return best


def show(calibration: str) -> None:
    """Print both."""
    taken = sorted(decisions_ms(calibration))
    print(f"a call: {call_us():.1f} us; a decision about one engine, every {CapRules().interval_seconds:g} s:", end=" ")
    print(f"{taken[len(taken) // 2]:.1f} ms in the median, {taken[-1]:.1f} ms at most of {len(taken)}")
