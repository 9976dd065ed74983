"""What does a proxy cost? CPU per request and per streamed token, side by side with nginx and the Rust vllm-router.

The proxy runs alone on one core, the mock engine and the load on another, the proxies in turn, every load bounded. The
figure to trust on a busy machine is CPU time as a ratio to a peer in the same run. A proxy whose answers are wrong or
short counts as failed.
"""

from __future__ import annotations

import argparse
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

from bench import overhead_peers, overhead_report
from bench.overhead_peers import API_KEY, Proxy
from bench.processes import cpu_model, cpu_seconds, free_ports, on_core, peak_mib, running
from bench.programs import BenchError, Programs, build_programs, default_work_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_SECONDS = 0.5
READY_SECONDS = 30.0
MIN_SECONDS, MAX_SECONDS = 1.0, 60.0


@dataclass(frozen=True)
class Scenario:
    """One load: closed loop where rate_per_second is 0, plain answers where tokens is 0."""

    name: str
    connections: int
    rate_per_second: int
    seconds: float
    tokens: int
    body: str


SCENARIOS = (
    Scenario("plain, 64 clients", 64, 0, 2.0, 0, "plain"),
    Scenario("plain, 32 KB prompt", 16, 0, 1.5, 0, "plain_32k"),
    Scenario("plain, 400/s", 256, 400, 2.0, 0, "plain"),
    Scenario("stream, 100/s x 64 tokens", 512, 100, 2.0, 64, "stream_10ms"),
)


class ProxyFailedError(Exception):
    """The proxy under test ended, did not answer, or answered wrongly."""


def write_bodies(folder: Path) -> None:
    """Writes the request bodies, one JSON file each."""
    words = "You are a careful assistant in a workflow of many steps and you answer shortly. "

    def text(length: int) -> str:
        return (words * (length // len(words) + 1))[:length]

    def body(prompt_length: int, **more: object) -> str:
        messages = [{"role": "system", "content": text(300)}, {"role": "user", "content": text(prompt_length)}]
        common = {"model": "mock", "messages": messages, "temperature": 0.0, "max_tokens": 64}
        return json.dumps(common | more, separators=(",", ":"))

    stream = {"stream": True, "seed": 10000, "stream_options": {"include_usage": True}}
    (folder / "plain.json").write_text(body(700))
    (folder / "plain_32k.json").write_text(body(32000))
    (folder / "stream_10ms.json").write_text(body(700, **stream))


def wait_until_answers(port: int, process: subprocess.Popen[bytes], body: bytes, log: Path) -> None:
    """Returns when the proxy answers a call from the mock. Raises ProxyFailedError if it does not in time."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    deadline = time.monotonic() + READY_SECONDS
    last: object = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 (a loopback URL made here)
                if b"choices" in answer.read():
                    return
        except OSError as error:
            last = error
        if process.poll() is not None:
            raise ProxyFailedError(f"the proxy ended at once: {_tail(log)}")
        time.sleep(0.1)
    raise ProxyFailedError(f"the proxy never answered ({last}): {_tail(log)}")


def measure(proxy: Proxy, mock_port: int, scenarios: Sequence[Scenario], bench: Bench) -> dict[str, Any]:
    """One pass over all scenarios: {scenario: {cpu_ms, p50_ms, ...}, "peak_mib": ...}. Raises ProxyFailedError."""
    log = bench.folder / f"{proxy.name}.log"
    figures: dict[str, Any] = {}
    mock_command = [str(bench.programs.mock), str(mock_port), "mock"]
    with (
        running(mock_command, bench.folder / "mock.log", bench.load_core),
        running(proxy.command, log, bench.proxy_core) as process,
    ):
        wait_until_answers(proxy.port, process, (bench.folder / "plain.json").read_bytes(), log)
        for scenario in scenarios:
            before = cpu_seconds(process.pid)
            report = run_load(scenario, proxy.port, bench)
            used = cpu_seconds(process.pid) - before
            figures[scenario.name] = scenario_figures(scenario, report, used)
        figures["peak_mib"] = peak_mib(process.pid)
        if process.poll() is not None:
            raise ProxyFailedError(f"the proxy ended during the load: {_tail(log)}")
    return figures


def run_load(scenario: Scenario, port: int, bench: Bench) -> dict[str, Any]:
    """Runs the load generator and returns its report. Raises ProxyFailedError when answers were wrong or short."""
    options = {"-p": port, "-c": scenario.connections, "-d": scenario.seconds, "-w": WARM_SECONDS}
    optional = {"-r": scenario.rate_per_second, "-n": scenario.tokens}
    options |= {name: value for name, value in optional.items() if value}
    command = [str(bench.programs.loadgen), "-f", str(bench.folder / f"{scenario.body}.json")]
    command += [text for name, value in options.items() for text in (name, str(value))]
    try:
        with on_core(bench.load_core):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise ProxyFailedError(f"{scenario.name}: the load could not run: {error}") from error
    if report["errors"] or report["left"] or not report["done"]:
        told = report["first_error"] or done.stderr[-300:]
        unanswered = f"{report['left']} unanswered, " if report["left"] else ""
        raise ProxyFailedError(
            f"{scenario.name}: {unanswered}{report['errors']} of {report['done_all']} answers wrong: {told}"
        )
    return report


def scenario_figures(scenario: Scenario, report: dict[str, Any], used_seconds: float) -> dict[str, float]:
    """The figures of one scenario; CPU counts per answer of the whole load, the warm-up's too."""
    answers = report["done_all"]
    figures = {
        "cpu_ms": 1e3 * used_seconds / answers,
        "rps": report["rps"],
        "p50_ms": report["lat_us"]["p50"] / 1e3,
        "p99_ms": report["lat_us"]["p99"] / 1e3,
    }
    if scenario.tokens:
        figures["cpu_us_token"] = 1e6 * used_seconds / answers / scenario.tokens
        figures["chunk_p50_ms"] = report["chunk_us"]["p50"] / 1e3
        figures["chunk_p99_ms"] = report["chunk_us"]["p99"] / 1e3
    return figures


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    programs: Programs
    folder: Path
    proxy_core: int
    load_core: int


def pick_cores(allowed: set[int]) -> tuple[int, int]:
    """The proxy's core and the load's. Raises BenchError when there are not two."""
    if len(allowed) < 2:
        raise BenchError(
            f"the bench needs 2 CPU cores, one for the proxy alone and one for the load; this process may use"
            f" {len(allowed)}: run it on a larger machine or widen its CPU affinity (taskset, cpuset)"
        )
    first, second = sorted(allowed)[:2]
    return first, second


def find_proxies(args: argparse.Namespace, folder: Path, mock_port: int) -> tuple[list[Proxy], dict[str, str]]:
    """The proxies to compare, and why each other one is left out."""
    proxies: list[Proxy] = []
    left_out: dict[str, str] = {}
    for name in args.peers:
        try:
            if name == "nginx":
                proxies.append(overhead_peers.nginx(folder, mock_port, args.install))
            else:
                proxies.append(overhead_peers.vllm_router(args.work_dir, mock_port))
        except BenchError as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    if args.ours is None:
        port, control_port = free_ports(2)
        proxies.append(overhead_peers.gateway(folder, mock_port, port, control_port))
    elif args.ours:
        proxies.append(overhead_peers.custom(args.ours, mock_port, args.port))
    return proxies, left_out


def peer_names(text: str) -> list[str]:
    """The --peers option: a comma-separated list of known names, or nothing."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in overhead_peers.PEERS:
            raise argparse.ArgumentTypeError(f"unknown peer {name!r}; known are {', '.join(overhead_peers.PEERS)}")
    return names


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `joulegate-bench overhead`."""
    parser.add_argument("--repeats", type=int, default=5, help="passes over all proxies; medians are shown (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs and medians there")
    parser.add_argument(
        "--ours",
        metavar="COMMAND",
        help="a gateway to measure instead of joulegate with everything on; {upstream} becomes the mock engine's base"
        " URL, {port} the value of --port; '' measures the peers alone",
    )
    parser.add_argument("--port", type=int, default=8080, help="the port that the --ours COMMAND serves (default 8080)")
    parser.add_argument("--peers", type=peer_names, default=list(overhead_peers.PEERS), metavar="nginx,vllm-router")
    parser.add_argument("--seconds", type=float, help="length of each load (default 1.5 to 2 s)")
    parser.add_argument("--install", action="store_true", help="install nginx with apt-get when it is missing")
    parser.add_argument("--work-dir", type=Path, default=default_work_dir(), help="compiled programs and the router")


def run(args: argparse.Namespace) -> int:
    """Runs the comparison, prints it as Markdown; returns 1 when a proxy failed. Raises BenchError."""
    if args.repeats < 1:
        raise BenchError("--repeats must be at least 1")
    if args.seconds is not None and not MIN_SECONDS <= args.seconds <= MAX_SECONDS:
        raise BenchError(f"--seconds must lie in {MIN_SECONDS:g} to {MAX_SECONDS:g}: a stream alone lasts 0.65 s")
    proxy_core, load_core = pick_cores(os.sched_getaffinity(0))
    work_dir = args.work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    programs = build_programs(work_dir)
    scenarios = [dataclasses.replace(s, seconds=args.seconds or s.seconds) for s in SCENARIOS]
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        bench = Bench(programs, Path(name), proxy_core, load_core)
        write_bodies(bench.folder)
        (mock_port,) = free_ports(1)
        proxies, left_out = find_proxies(args, bench.folder, mock_port)
        runs: dict[str, list[dict[str, Any]]] = {proxy.name: [] for proxy in proxies}
        failures: dict[str, list[str]] = {}
        for number in range(args.repeats):
            for proxy in proxies:
                print(f"pass {number + 1} of {args.repeats}: {proxy.name}", file=sys.stderr)
                try:
                    runs[proxy.name].append(measure(proxy, mock_port, scenarios, bench))
                except ProxyFailedError as error:
                    failures.setdefault(proxy.name, []).append(str(error))
                    print(f"{proxy.name} failed: {error}", file=sys.stderr)
    report = overhead_report.Report(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        cpu=cpu_model(),
        command=shlex.join(["joulegate-bench", *args.argv]),
        versions={proxy.name: proxy.version for proxy in proxies},
        repeats=args.repeats,
        runs=runs,
        failures=failures,
        left_out=left_out,
    )
    print(overhead_report.render(report))
    if args.json:
        args.json.write_text(json.dumps(overhead_report.as_json(report), indent=1) + "\n")
    return 1 if failures else 0


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace").strip()[-600:] or "it printed nothing"
    return "its log is unavailable"
