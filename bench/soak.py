"""Does a long life cost memory or leave anything behind? Many streams through one gateway process.

The streams are what a gateway meets: whole ones, with and without usage asked for, clients that leave in the middle of
their body, while they wait, or after the first token; engines that answer 500, reset the connection or break off; bad
requests; kept and closed connections. Resident memory is sampled all the while; at the end the gateway's own state,
its descriptors and its tasks must be back where they were before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import overhead_peers
from bench.overhead import ProxyFailedError, wait_until_answers
from bench.processes import cpu_model, end, free_ports, on_core, open_files, resident_kib, running
from bench.programs import BenchError, Programs, build_programs, default_work_dir
from bench.soak_fit import Slope, fit_slope

if TYPE_CHECKING:
    import argparse

    from bench.overhead_peers import Proxy

TOKENS = 8
WARM_SHARE = 0.2
PRIMING_STREAMS = 200
PROGRESS_SECONDS = 0.1
# Anything kept per stream, even for one stream in a hundred, is a call object of 1 KiB and more: 10 KiB per 1,000
# streams. Below 4 lie the allocator's own steps: one arena of 1 MiB in the middle of 80,000 streams moves the fit by
# more than that, but also widens its interval.
TOLERANCE_KIB_PER_1000 = 4.0

# share of the streams, what must come back (see native/loadgen.c), how the body differs from the usual one
MIX: tuple[tuple[float, str, dict[str, Any]], ...] = (
    (0.30, "good", {"stream_options": None}),
    (0.02, "5", {"mock_fault": 1}),
    (0.01, "5", {"mock_fault": 2}),
    (0.02, "cut", {"mock_fault": 3}),
    (0.01, "4", {"model": "no-such-model"}),
)
BROKEN_SHARE = 0.01
# The faults are asked for: one in twenty calls fails, and three in a row must not shut the only engine out.
NO_BREAKER = "\n[health]\nfailures_to_open = 1000000\n"
LEAVES = {"body": 0.02, "sent": 0.04, "token": 0.06}
LEFT_WHEN = {"body": "in their body", "sent": "before an answer", "token": "after a token"}
CLOSE_SHARE = 0.2
ZEROS = ("calls", "client_connections", "engine_connections_busy", "buffered_bytes")
LEVELS = ("tasks", "engine_connections_idle")


@dataclass(frozen=True)
class Soak:
    """The parts of one run."""

    programs: Programs
    folder: Path
    proxy: Proxy
    control_port: int
    pid: int
    load_core: int | None
    concurrency: int


def write_bodies(folder: Path) -> list[str]:
    """Writes the usual body and the others; returns the load generator's options for the mix."""
    usual: dict[str, Any] = {
        "model": "mock",
        "messages": [{"role": "user", "content": "Say something short. " * 20}],
        "max_tokens": TOKENS,
        "seed": 500,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    (folder / "plain.json").write_text(json.dumps(usual))
    options: list[str] = []
    for number, (share, expect, changes) in enumerate(MIX):
        body = {name: value for name, value in (usual | changes).items() if value is not None}
        path = folder / f"other-{number}.json"
        path.write_text(json.dumps(body))
        options += ["-e", f"{share}:{expect}:{path}"]
    broken = folder / "broken.json"
    broken.write_text('{"model": "mock", "messages": [')
    options += ["-e", f"{BROKEN_SHARE}:4:{broken}"]
    for when, share in LEAVES.items():
        options += ["-x", f"{when}:{share}"]
    return [*options, "-k", str(CLOSE_SHARE)]


def read_state(soak: Soak) -> dict[str, int]:
    """The counts that must come back, from the control port and the kernel. Raises ProxyFailedError without them."""
    url = f"http://127.0.0.1:{soak.control_port}/admin/state"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            process = json.loads(answer.read())["process"]
        counts = {name: int(process[name]) for name in (*ZEROS, *LEVELS)}
        held = {"held": int(process["held"])} if "held" in process else {}  # else they are among the calls
        return counts | held | {"open_files": open_files(soak.pid)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProxyFailedError(f"{url} did not tell the process's counts: {error!r}") from error


def idle_levels(soak: Soak, quiet_seconds: float) -> dict[str, int]:
    """The least of each count, read until none has fallen for `quiet_seconds`: probes come and go, leaks stay."""
    least = read_state(soak)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < quiet_seconds:
        time.sleep(0.1)
        now = read_state(soak)
        if any(now[name] < least[name] for name in least):
            quiet_since = time.monotonic()
        least = {name: min(least[name], now[name]) for name in least}
    return least


def leftovers(soak: Soak, idle: dict[str, int], settle_seconds: float) -> dict[str, str]:
    """What did not come back within `settle_seconds`: {count: "found, wanted"}; empty when all did."""
    wanted = {name: 0 if name in (*ZEROS, "held") else idle[name] for name in idle}
    least = read_state(soak)
    deadline = time.monotonic() + settle_seconds
    while any(least[name] > wanted[name] for name in wanted) and time.monotonic() < deadline:
        time.sleep(0.1)
        now = read_state(soak)
        least = {name: min(least[name], now[name]) for name in least}
    return {name: f"{least[name]}, not {wanted[name]}" for name in wanted if least[name] > wanted[name]}


def send_streams(
    soak: Soak, streams: int, mix: list[str], sample_seconds: float
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Sends the streams; returns the load generator's report and samples of (streams ended, resident KiB)."""
    progress = soak.folder / "progress"
    command = [str(soak.programs.loadgen), "-p", str(soak.proxy.port), "-c", str(soak.concurrency), "-w", "0"]
    command += ["-d", "3600", "-m", str(streams), "-n", str(TOKENS), "-i", str(PROGRESS_SECONDS)]
    command += ["-f", str(soak.folder / "plain.json"), *mix]
    samples: list[tuple[int, int]] = []
    report_file = soak.folder / "report.json"
    with progress.open("wb") as errors, report_file.open("wb") as output:
        with on_core(soak.load_core):
            load = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            while load.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    load.wait(sample_seconds)
                samples.append((streams_ended(progress), resident_kib(soak.pid)))
        finally:
            end(load)
    try:
        report: dict[str, Any] = json.loads(report_file.read_text())
    except ValueError as error:
        told = progress.read_text(errors="replace")[-300:]
        raise ProxyFailedError(f"the load ended early with {load.returncode}: {told}") from error
    return report, samples


def streams_ended(progress: Path) -> int:
    """The load generator's last word on how many streams are over."""
    for line in reversed(progress.read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["ended"])
    return 0


def judge(slope: Slope | None, tolerance: float) -> str:
    """Whether memory grows: "flat", "grows", or "inconclusive" where the interval holds the tolerance."""
    if slope is None:
        return "inconclusive"
    if slope.low > tolerance:
        return "grows"
    return "flat" if slope.high <= tolerance else "inconclusive"


def soak_gateway(soak: Soak, args: argparse.Namespace) -> dict[str, Any]:
    """Primes, loads and judges a running gateway. Raises ProxyFailedError when it stops answering."""
    mix = write_bodies(soak.folder)
    send_streams(soak, min(PRIMING_STREAMS, args.streams), mix, args.sample_seconds)
    idle = idle_levels(soak, args.idle_seconds)
    began = time.monotonic()
    load, samples = send_streams(soak, args.streams, mix, args.sample_seconds)
    seconds = time.monotonic() - began
    left = leftovers(soak, idle, args.settle_seconds)
    warm = [(ended, kib) for ended, kib in samples if ended >= WARM_SHARE * args.streams]
    slope = fit_slope([ended for ended, _ in warm], [kib for _, kib in warm])
    faults = [f"{name}: {text}" for name, text in left.items()]
    if load["errors"] or load["left"]:
        faults.append(f"{load['errors']} wrong answers and {load['left']} missing: {load['first_error']}")
    memory = judge(slope, args.tolerance)
    if memory == "grows":
        faults.append(f"memory grows: the whole interval lies above {args.tolerance:g} KiB per 1,000 streams")
    return {
        "seconds": seconds,
        "load": load,
        "samples": samples,
        "slope": dataclasses.asdict(slope) if slope else None,
        "memory": memory,
        "idle": idle,
        "faults": faults,
    }


def render(report: dict[str, Any], tolerance: float) -> str:
    """The report as Markdown."""
    load, slope, samples = report["load"], report["slope"], report["samples"]
    left = ", ".join(f"{load['left_' + when]} {text}" for when, text in LEFT_WHEN.items())
    fitted = "unavailable: too few samples, send more streams or sample more often"
    if slope:
        fitted = f"{slope['kib_per_1000']:.2f} KiB per 1,000 streams, 95 % interval {slope['low']:.2f} to"
        fitted += f" {slope['high']:.2f} ({slope['samples']} samples, worth {slope['effective_samples']:.0f})"
    resident = f"{samples[0][1] / 1024:.1f} to {samples[-1][1] / 1024:.1f}" if samples else "unavailable"
    lines = [
        f"{report['date']}, {report['cpu']}; `{report['command']}`",
        "",
        (
            f"- {load['ended']} streams in {report['seconds']:.0f} s ({load['ended'] / report['seconds']:.0f}/s);"
            f" clients that left: {left}; ended as their fault asks: {load['expected']}; wrong: {load['errors']}"
        ),
        f"- resident memory {resident} MiB; slope after the first {WARM_SHARE:.0%}: {fitted}",
        f"- memory against {tolerance:g} KiB per 1,000 streams: {report['memory']}",
        *(f"- FAULT {fault}" for fault in report["faults"]),
    ]
    if not report["faults"]:
        lines.append("- nothing left: calls, connections, buffers, tasks and descriptors are back at their idle level")
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `joulegate-bench soak`."""
    parser.add_argument("--streams", type=int, default=100_000, help="streams to send (default 100000)")
    parser.add_argument("--concurrency", type=int, default=256, help="connections of the clients (default 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report and all samples there")
    parser.add_argument(
        "--gateway-command",
        metavar="COMMAND",
        help="a gateway to soak instead of joulegate with everything on; {upstream} becomes the mock engine's base URL,"
        " {port} and {control_port} the ports to serve; it must take the key sk-test or none",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE_KIB_PER_1000,
        help="KiB per 1,000 streams above which the slope's whole interval fails (default %(default)g)",
    )
    parser.add_argument("--sample-seconds", type=float, default=2.0, help="between samples of memory (default 2)")
    parser.add_argument("--idle-seconds", type=float, default=6.0, help="quiet time to learn idle levels (default 6)")
    parser.add_argument("--settle-seconds", type=float, default=30.0, help="time for counts to fall (default 30)")
    parser.add_argument("--work-dir", type=Path, default=default_work_dir(), help="where compiled programs are kept")


def run(args: argparse.Namespace) -> int:
    """Runs the soak and prints its report; returns 1 when it found a fault. Raises BenchError."""
    if args.streams < 1 or args.concurrency < 1 or args.sample_seconds <= 0:
        raise BenchError("--streams, --concurrency and --sample-seconds must be above 0")
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    programs = build_programs(work_dir)
    cores: list[int | None] = [*sorted(os.sched_getaffinity(0))[:2]]
    gateway_core, load_core = cores if len(cores) == 2 else (None, None)
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        folder = Path(name)
        mock_port, port, control_port = free_ports(3)
        if args.gateway_command is None:
            proxy = overhead_peers.gateway(
                folder, mock_port, port, control_port, max_in_flight=max(1, args.concurrency // 4), more=NO_BREAKER
            )
        else:
            command = args.gateway_command.replace("{control_port}", str(control_port))
            proxy = overhead_peers.custom(command, mock_port, port)
        log = folder / "gateway.log"
        mock_command = [str(programs.mock), str(mock_port), "mock"]
        with (
            running(mock_command, folder / "mock.log", load_core),
            running(proxy.command, log, gateway_core) as process,
        ):
            soak = Soak(programs, folder, proxy, control_port, process.pid, load_core, args.concurrency)
            write_bodies(folder)
            try:
                wait_until_answers(port, process, (folder / "plain.json").read_bytes(), log)
                report = soak_gateway(soak, args)
            except ProxyFailedError as error:
                print(f"joulegate-bench: {error}", file=sys.stderr)
                return 1
            exit_code = end(process)
            if exit_code != 0:
                report["faults"].append(f"the gateway ended with {exit_code} after SIGTERM, not 0")
    report["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    report |= {"cpu": cpu_model(), "command": shlex.join(["joulegate-bench", *args.argv]), "version": proxy.version}
    print(render(report, args.tolerance))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report["faults"] else 0
