"""What does the graph of workflows cost? Declaring, one finished call among very many live nodes, memory a node.

Times are wall time in one thread, with the garbage collector set as in the gateway and what was measured before
thrown away.
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
import sys
import tempfile
import threading
import time
import tracemalloc
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

from bench.processes import cpu_seconds, free_ports, running
from bench.programs import BenchError
from proxy.app import GC_THRESHOLD
from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import NodeSpec, WorkflowBook, WorkflowLimits, WorkflowSpec

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Iterable, Iterator

    from scheduler.workflow import Node, Workflow

DECLARED_MS_MAX = SUBMITTED_MS_MAX = 100.0
DECLARATIONS = 7
"""Of each graph; the best is judged, since other work on the machine only ever adds, and the median is shown."""
SLACK_US_MAX = 50.0
HINTED_US_MAX = 30.0
SUBMISSIONS = 9
"""Of each mode, after one that warms the gateway up."""
READY_SECONDS = 30.0
_GATEWAY_CONFIG = """[listen]
host = "127.0.0.1"
port = {port}
control_port = {control_port}
[[engines]]
url = "http://127.0.0.1:9"
[log]
path = "{folder}/calls.log"
"""


class Timing(NamedTuple):
    """Microseconds of many equal steps."""

    steps: int
    p50: float
    mean: float
    p99: float
    max: float


def chains(nodes: int, rng: random.Random) -> list[NodeSpec]:
    """100 chains side by side."""
    width = min(100, nodes)
    return [_node(i, (i - width,) if i >= width else (), rng) for i in range(nodes)]


def fan_out(nodes: int, rng: random.Random) -> list[NodeSpec]:
    """One node that all others wait for."""
    return [_node(i, (0,) if i else (), rng) for i in range(nodes)]


def map_reduce(nodes: int, rng: random.Random) -> list[NodeSpec]:
    """All but the last side by side, the last waits for all."""
    return [_node(i, range(nodes - 1) if i == nodes - 1 else (), rng) for i in range(nodes)]


def random_dag(nodes: int, rng: random.Random) -> list[NodeSpec]:
    """Each waits for up to 4 of the 1,000 before it."""
    return [
        _node(i, {rng.randrange(max(0, i - 1000), i) for _ in range(rng.randint(0, 4))} if i else (), rng)
        for i in range(nodes)
    ]


SHAPES: dict[str, Callable[[int, random.Random], list[NodeSpec]]] = {
    "chains": chains,
    "fan-out": fan_out,
    "map-reduce": map_reduce,
    "random DAG": random_dag,
}


def _node(number: int, after: Iterable[int], rng: random.Random) -> NodeSpec:
    return NodeSpec(
        f"n-{number}",
        tuple(f"n-{other}" for other in after),
        expected_output_tokens=rng.randint(20, 800),
        prompt_tokens_estimate=rng.randint(100, 4000),
        prefix=(1, 2, number),
    )


def _limits(nodes: int) -> WorkflowLimits:
    return WorkflowLimits(
        workflows=nodes, nodes_per_workflow=nodes, edges_per_workflow=5 * nodes, nodes=2 * nodes, edges=10 * nodes,
        prefix_hashes=4 * nodes,
    )  # fmt: skip


def timing(nanoseconds: list[int]) -> Timing:
    """The figures of one pass."""
    ordered = sorted(nanoseconds)
    size = len(ordered)
    picked = ordered[size // 2], sum(ordered) / size, ordered[min(size - 1, size * 99 // 100)], ordered[-1]
    return Timing(size, *(round(value / 1000.0, 2) for value in picked))


def declare_ms(shape: str, nodes: int, seed: int) -> list[float]:
    """Milliseconds to declare one graph, several times, the shortest first."""
    specs = tuple(SHAPES[shape](nodes, random.Random(seed)))
    taken = []
    for _ in range(DECLARATIONS):
        book = WorkflowBook(_limits(nodes))
        gc.collect()
        begun = perf_counter_ns()
        book.declare(WorkflowSpec("key", "graph", nodes=specs), 0.0)
        taken.append((perf_counter_ns() - begun) / 1e6)
    return sorted(taken)


def finishes(book: WorkflowBook, workflows: list[Workflow], calls: int, rng: random.Random) -> dict[str, Timing]:
    """Run calls of declared workflows: what a start, a finish, and a question for slack after it cost."""
    ready = [node for workflow in workflows for node in workflow.graph.nodes.values() if node.state == "ready"]
    rng.shuffle(ready)
    gc.collect()
    taken: dict[str, list[int]] = {"arrive": [], "start": [], "finish": [], "slack": []}
    told: list[int] = []
    now = 1.0
    for number in range(calls):
        if not ready:
            break
        node = ready.pop()
        now += 0.01
        arrived = CallArrived(f"c{number}", "key", "model", node.workflow.id, 500, node=node.name)
        finished = CallFinished(f"c{number}", 500, 100, rng.randint(20, 800))
        times = [perf_counter_ns()]
        book.call_arrived(arrived, now)
        times.append(perf_counter_ns())
        book.call_started(f"c{number}", now)
        times.append(perf_counter_ns())
        change = book.call_finished(finished, now + 1.0)
        times.append(perf_counter_ns())
        assert change is not None
        ask_slack(change.ready[:1] or (ready[-1:] if ready else (node,)), now + 1.0)
        times.append(perf_counter_ns())
        for name, begun, ended in zip(taken, times, times[1:], strict=False):
            taken[name].append(ended - begun)
        ready.extend(change.ready)
        while book.untold:  # what very many wait for: the rest is told in turns of the loop
            begun = perf_counter_ns()
            ready.extend(book.tell_on(now + 1.0))
            told.append(perf_counter_ns() - begun)
        if len(ready) > 1:  # a random one next
            other = rng.randrange(len(ready))
            ready[-1], ready[other] = ready[other], ready[-1]
    return {name: timing(values) for name, values in (*taken.items(), *([("tell on", told)] if told else []))}


def ask_slack(nodes: Iterable[Node], now: float) -> None:
    """What a policy asks of a node."""
    for node in nodes:
        node.workflow.slack_seconds(node, now)
        node.workflow.free_slack_seconds(node, now)


def one_graph(shape: str, nodes: int, calls: int, seed: int) -> dict[str, Timing]:
    """Calls of one graph of so many nodes."""
    rng = random.Random(seed)
    book = WorkflowBook(_limits(nodes))
    return finishes(
        book, [book.declare(WorkflowSpec("key", "graph", nodes=tuple(SHAPES[shape](nodes, rng))), 0.0)], calls, rng
    )


def many_graphs(nodes: int, size: int, calls: int, seed: int) -> dict[str, Timing]:
    """Calls of many graphs of `size` nodes, all shapes in turn."""
    rng = random.Random(seed)
    book = WorkflowBook(_limits(nodes))
    shapes = list(SHAPES.values())
    workflows = [
        book.declare(WorkflowSpec("key", f"graph-{i}", nodes=tuple(shapes[i % len(shapes)](size, rng))), 0.0)
        for i in range(nodes // size)
    ]
    return finishes(book, workflows, calls, rng)


def hinted(calls: int, workflows: int) -> Timing:
    """A call of a workflow that grows call by call: arrival, start and finish together."""
    book = WorkflowBook(WorkflowLimits(nodes=2 * calls, workflows=2 * workflows))
    gc.collect()
    taken: list[int] = []
    for number in range(calls):
        now = 0.01 * number
        arrived = CallArrived(f"c{number}", "key", "model", f"w{number % workflows}", 500, 256)
        finished = CallFinished(f"c{number}", 500, 100, 50 + number % 200)
        begun = perf_counter_ns()
        book.call_arrived(arrived, now)
        book.call_started(f"c{number}", now)
        book.call_finished(finished, now + 1.0)
        taken.append(perf_counter_ns() - begun)
    return timing(taken)


def bytes_a_node(shape: str, nodes: int, seed: int) -> float:
    """Memory of a declared graph, the specification not counted."""
    specs = tuple(SHAPES[shape](nodes, random.Random(seed)))
    tracemalloc.start()
    book = WorkflowBook(_limits(nodes))
    book.declare(WorkflowSpec("key", "graph", nodes=specs), 0.0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert book.tables.node_count == nodes
    return taken / nodes


class Submitted(NamedTuple):
    """Milliseconds of many equal submissions, the shortest first, the gateway's CPU time of each, likewise, and the
    longest that another client waited."""

    taken: list[float]
    cpu: list[float]
    others_waited: float


def submission(nodes: int, seed: int, mode: str) -> bytes:
    """A random graph with small requests. All wait for a tool that nobody runs, so that no engine is needed."""
    items: list[dict[str, object]] = [{"id": "n-0", "tool": True}]
    for number, spec in enumerate(random_dag(nodes, random.Random(seed))[1:], 1):
        messages = [{"role": "user", "content": f"Question {number} about the report."}]
        items.append(
            {
                "id": spec.id,
                "after": spec.after or ["n-0"],
                "expected_output_tokens": spec.expected_output_tokens,
                "request": {"model": "m", "messages": messages, "max_tokens": 1024},
            }
        )
    return json.dumps({"mode": mode, "background": mode == "run", "nodes": items}).encode()


def submitted(nodes: int, seed: int) -> dict[str, Submitted]:
    """By mode: POST /v1/workflows to a gateway process, until its answer is there."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder, (port, control_port) = Path(name), free_ports(2)
        config, log = folder / "gateway.toml", folder / "gateway.log"
        config.write_text(_GATEWAY_CONFIG.format(port=port, control_port=control_port, folder=name))
        command = [sys.executable, "-m", "proxy.cli", "serve", "--config", str(config)]
        with running(command, log) as process:
            _wait_until_answers(port, process, log)
            for mode in ("declared", "run"):
                body = submission(nodes, seed, mode)
                alone = [_submit_ms(port, process.pid, body) for _ in range(1 + SUBMISSIONS)][1:]
                with _asking(port) as waits:
                    for _ in range(SUBMISSIONS):
                        _submit_ms(port, process.pid, body)
                taken, cpu = (sorted(times) for times in zip(*alone, strict=True))
                found[mode] = Submitted(taken, cpu, max(waits, default=0.0))
    return found


def _submit_ms(port: int, pid: int, body: bytes) -> tuple[float, float]:
    """From the first byte of the request to the last of the answer, and the gateway's CPU time meanwhile."""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)) as client:
        client.connect()
        cpu, begun = cpu_seconds(pid), perf_counter_ns()
        client.request("POST", "/v1/workflows", body, {"content-type": "application/json"})
        answer = client.getresponse()
        text = answer.read()
        taken, cpu = (perf_counter_ns() - begun) / 1e6, (cpu_seconds(pid) - cpu) * 1e3
        if answer.status not in (201, 202):
            raise BenchError(f"the gateway answered {answer.status}: {text[:200]!r}")
        client.request("DELETE", answer.headers["location"])
        client.getresponse().read()
    time.sleep(0.2)  # what the deletion left to do is no part of the next
    return taken, cpu


@contextlib.contextmanager
def _asking(port: int) -> Iterator[list[float]]:
    """Another client, which asks for little all the time: how long each answer took, in ms."""
    waits: list[float] = []
    enough = threading.Event()

    def ask() -> None:
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)) as client:
            while not enough.wait(0.002):
                begun = perf_counter_ns()
                client.request("GET", "/v1/workflows?limit=1")
                client.getresponse().read()
                waits.append((perf_counter_ns() - begun) / 1e6)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        enough.set()
        thread.join()


def _wait_until_answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=1.0)) as client:
            client.request("GET", "/v1/workflows")
            client.getresponse().read()
            return
        time.sleep(0.05)
    raise BenchError(f"the gateway does not answer: {log.read_text()[-500:]}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--declared", type=int, default=10_000, help="nodes of a graph to declare (default 10000)")
    parser.add_argument("--nodes", type=int, default=100_000, help="live nodes (default 100000)")
    parser.add_argument("--calls", type=int, default=20_000, help="calls that are run of them (default 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of the random graphs (default 1)")


def run(args: argparse.Namespace) -> int:
    """Print all figures; 1 if one of the issue's bounds is not kept."""
    faults: list[str] = []
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    print(f"{sys.implementation.name} {sys.version.split()[0]}, seed {args.seed}\n")
    print(f"declaring {args.declared:,} nodes, ms: best (at most {DECLARED_MS_MAX:g}), median, worst of {DECLARATIONS}")
    for shape in SHAPES:
        best, *_, worst = taken = declare_ms(shape, args.declared, args.seed)
        memory = bytes_a_node(shape, args.declared, args.seed)
        print(f"  {shape:12} {best:8.1f} {taken[len(taken) // 2]:8.1f} {worst:8.1f}    {memory:8.0f} bytes a node")
        if best > DECLARED_MS_MAX:
            faults.append(f"declaring {shape} took {best:.1f} ms")
    title = f"\nsubmitted through the gateway, {args.declared:,} nodes, ms"
    print(f"{title}: best (at most {SUBMITTED_MS_MAX:g}), median, worst of {SUBMISSIONS}; its CPU time: best, median")
    for mode, (taken, cpu, waited) in submitted(args.declared, args.seed).items():
        best, *_, worst = taken
        used = f"{cpu[0]:8.1f} {cpu[len(cpu) // 2]:8.1f}"
        print(f"  {mode:12} {best:8.1f} {taken[len(taken) // 2]:8.1f} {worst:8.1f}    {used}", end="")
        print(f"    others waited {waited:.0f} at most")
        if best > SUBMITTED_MS_MAX:
            faults.append(f"submitting in mode {mode} took {best:.1f} ms")
    print(f"\ncalls among {args.nodes:,} live nodes, µs a step (finish + slack: at most {SLACK_US_MAX:g} in the mean)")
    print(f"  {'':24} {'step':8} {'count':>7} {'p50':>8} {'mean':>8} {'p99':>8} {'max':>10}")
    for shape in SHAPES:
        _show(f"one graph, {shape}", one_graph(shape, args.nodes, args.calls, args.seed), faults)
    _show("graphs of 10", many_graphs(args.nodes, 10, args.calls, args.seed), faults)
    _show("graphs of 100", many_graphs(args.nodes, 100, args.calls, args.seed), faults)
    whole = hinted(args.calls, 1000)
    print(f"\na hinted call, µs for arrival, start and finish (p50 at most {HINTED_US_MAX:g})")
    _row("growing call by call", "all", whole)
    if whole.p50 > HINTED_US_MAX:
        faults.append(f"a hinted call takes {whole.p50:.1f} µs")
    for fault in faults:
        print(f"over the bound: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _show(title: str, figures: dict[str, Timing], faults: list[str]) -> None:
    for step, figure in figures.items():
        _row(title, step, figure)
        title = ""
    mean = figures["finish"].mean + figures["slack"].mean
    if mean > SLACK_US_MAX:
        faults.append(f"finish and slack take {mean:.1f} µs")


def _row(title: str, step: str, figure: Timing) -> None:
    count, p50, mean, p99, most = figure
    print(f"  {title:24} {step:8} {count:7} {p50:8.1f} {mean:8.1f} {p99:8.1f} {most:10.1f}")
