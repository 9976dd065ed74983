"""`joulegate-bench player-speed`: how late does the player send when thousands of its streams are open, on one core?

Against the bench's mock engine, which sends each token at its time and does nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load.figures import quantile
from bench.processes import cpu_model, free_ports, running
from bench.programs import BenchError, build_programs, default_work_dir
from workloads.player import Player
from workloads.prompts import Manner
from workloads.shapes import CallShape, Part, WorkflowShape

if TYPE_CHECKING:
    import argparse

    from workloads.played import PlayedCall, PlayedWorkflow

LATE_SHARE = 0.05
FIRST_SECONDS = 1.0
"""Streams that are to start earlier than that are judged as if they were to start then."""
PROMPT_TOKENS = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `player-speed`."""
    parser.add_argument("--streams", type=int, default=2000, metavar="N", help="open at once (default: 2000)")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="of each stream (default: 200)")
    parser.add_argument("--itl-ms", type=float, default=100.0, metavar="MS", help="between two of them (default: 100)")
    parser.add_argument("--seconds", type=float, default=40.0, metavar="S", help="of starts (default: 40)")
    parser.add_argument("--core", type=int, metavar="N", help="the player's (default: the last one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")


def run(args: argparse.Namespace) -> int:
    """0; 1 if a stream failed or started later than 5 % of its intended start time. BenchError without a compiler."""
    import uvloop

    from proxy.descriptors import raise_limit

    if not (args.streams > 0 and args.tokens > 0 and args.itl_ms > 0 and args.seconds > 0):
        raise BenchError("--streams, --tokens, --itl-ms and --seconds must be above 0")
    raise_limit()
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if args.core is None else args.core
    programs = build_programs(default_work_dir())
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        other = next((each for each in cores if each != core), None)
        with running([str(programs.mock), str(port), "mock"], Path(folder) / "mock.log", other):
            os.sched_setaffinity(0, {core})
            time.sleep(0.2)
            cpu, waited = time.process_time(), _waited_seconds()
            began = time.monotonic()
            played = uvloop.run(_play(args, f"http://127.0.0.1:{port}"))
            took = time.monotonic() - began
            used, starved = (time.process_time() - cpu) / took, (_waited_seconds() - waited) / took
    figures = judge(played, args) | {"core_share": used, "waited_for_core_share": starved}
    for line in _lines(figures, args):
        print(line)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(bool(figures["failed"]) or figures["late_share_max"] > LATE_SHARE)


async def _play(args: argparse.Namespace, url: str) -> list[PlayedWorkflow]:
    from workloads.played import Arrival

    stream_seconds = args.tokens * args.itl_ms / 1e3
    gap = stream_seconds / args.streams
    manner = Manner(streamed=True, sampling={"seed": round(args.itl_ms * 1e3)})
    arrivals = []
    for number in range(int(args.seconds / gap)):
        prompt = (Part(f"stream {number}", PROMPT_TOKENS),)
        shape = WorkflowShape(f"s{number}", "stream", (CallShape("answer", (), prompt, args.tokens),))
        arrivals.append(Arrival(number * gap, shape))
    player = Player(url, "mock", way="bare", manner=manner, concurrency=10 * args.streams)
    return await player.play(arrivals)


def _waited_seconds() -> float:
    """How long this thread was ready to run and had no core, by the kernel."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def judge(played: list[PlayedWorkflow], args: argparse.Namespace) -> dict[str, Any]:
    """How late, as it is and against the intended start time and the gap between two starts."""
    calls = [workflow.calls[0] for workflow in played]
    began = min(call.intended_at for call in calls)
    late = [call.sent_at - call.intended_at for call in calls]
    shares = [
        each / max(FIRST_SECONDS, call.intended_at - began) for each, call in zip(late, calls, strict=True)
    ]  # fmt: skip
    stream_seconds = args.tokens * args.itl_ms / 1e3
    longer = [call.answered_at - call.sent_at - stream_seconds for call in calls if call.good]
    return {
        "streams": len(calls),
        "failed": sum(not call.good for call in calls),
        "first_error": next((call.error for call in calls if not call.good), ""),
        "open_at_most": _open_at_most(calls),
        "late_p50_ms": _ms(quantile(late, 0.5)),
        "late_p99_ms": _ms(quantile(late, 0.99)),
        "late_max_ms": _ms(max(late)),
        "late_share_max": max(shares),
        "gap_ms": stream_seconds / args.streams * 1e3,
        "longer_p50_ms": _ms(quantile(longer, 0.5)),
        "longer_p99_ms": _ms(quantile(longer, 0.99)),
        "cpu": cpu_model(),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _open_at_most(calls: list[PlayedCall]) -> int:
    edges = sorted([(call.sent_at, 1) for call in calls] + [(call.answered_at, -1) for call in calls])
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def _lines(found: dict[str, Any], args: argparse.Namespace) -> list[str]:
    gap = found["gap_ms"]
    events = 1e3 / args.itl_ms * args.streams
    verdict = "within" if found["late_share_max"] <= LATE_SHARE else "NOT within"
    used = f"{found['core_share']:.0%} of it used, {found['waited_for_core_share']:.0%} of the time others had it"
    late = f"p50 {found['late_p50_ms']} ms  p99 {found['late_p99_ms']} ms  max {found['late_max_ms']} ms"
    apart = f"two starts are {gap:g} ms apart; p99 is {found['late_p99_ms'] / gap:.0%} of that"
    longer = f"p50 {found['longer_p50_ms']} ms  p99 {found['longer_p99_ms']} ms"
    lines = [
        f"{found['streams']} streams, {found['open_at_most']} open at most, {events:,.0f} tokens/s",
        f"on one core: {used} ({found['cpu']})",
        f"sent late by  {late}  ({apart})",
        f"streams took longer than tokens × pace by  {longer}",
        f"every start {verdict} {LATE_SHARE:.0%} of its intended time: at most {found['late_share_max']:.2%}",
    ]
    if found["failed"]:
        lines.append(f"{found['failed']} streams failed, the first: {found['first_error']}")
    return lines
