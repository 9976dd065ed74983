"""`joulegate-bench record`: a gateway's log → a trace: lengths, times, graphs, hashes of prefixes, and no text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load.record_logs import Found, Seen, hashed, named, read_log
from bench.programs import BenchError
from workloads.trace import Trace, TracedCall, TracedWorkflow, write_trace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

KIND = "traced"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `record`."""
    parser.add_argument("log", type=Path, metavar="LOG", help="the gateway's event log, or its call log")
    parser.add_argument("--out", type=Path, required=True, metavar="TRACE.jsonl", help="the trace that is written")


def run(args: argparse.Namespace) -> int:
    """Write it and say what is in it. BenchError for a log without calls."""
    found = read_log(args.log)
    if not found.calls:
        raise BenchError(f"{args.log}: no call in it has an end and token counts ({found.left_out} were left out)")
    trace = trace_of(found)
    try:
        write_trace(args.out, trace)
    except OSError as error:
        raise BenchError(f"--out {args.out}: {error.strerror}") from None
    calls = sum(len(workflow.calls) for workflow in trace.workflows)
    seconds = trace.workflows[-1].at_seconds
    print(f"{args.out}: {len(trace.workflows):,} workflows, {calls:,} calls, begun within {seconds:,.1f} s")
    print(f"graph: {found.graph}")
    print(f"prefixes: {trace.head['prefixes']}")
    if found.left_out:
        print(f"left out: {found.left_out:,} requests without an end or token counts (as GET /metrics)")
    print(f"play it: joulegate-bench replay {args.out}")
    return 0


def trace_of(found: Found) -> Trace:
    """All workflows, in the order of their beginnings, the first at 0."""
    groups = grouped(found.calls)
    groups.sort(key=lambda calls: calls[0].began)
    origin = groups[0][0].began
    workflows = tuple(_workflow(f"w{number}", calls, origin) for number, calls in enumerate(groups, 1))
    hashes = any(call.prefix for call in found.calls)
    counted = any(call.cached_tokens is not None for call in found.calls)
    head = {
        "created_unix_seconds": time.time(),
        "source": found.source,
        "graph": found.graph,
        "prefixes": "hashes of leading text" if hashes else "from cached_tokens" if counted else "unknown: none shared",
        "calls_left_out": found.left_out,
    }
    return Trace(head, workflows)


def grouped(calls: Iterable[Seen]) -> list[list[Seen]]:
    """Calls that hang together, by what the clients said and by edges between workflows that were found out."""
    calls = list(calls)
    workflow_of = {call.id: call.workflow for call in calls}
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (up := leader.setdefault(name, name)) != name:
            leader[name] = leader[up]
            name = leader[name]
        return name

    for call in calls:
        for source in call.after or ():
            if source in workflow_of:
                leader[find(call.workflow)] = find(workflow_of[source])
    groups: dict[str, list[Seen]] = {}
    for call in sorted(calls, key=lambda each: each.began):
        groups.setdefault(find(call.workflow), []).append(call)
    return list(groups.values())


def _workflow(name: str, calls: list[Seen], origin: float) -> TracedWorkflow:
    began = calls[0].began
    numbers = {call.id: f"n{number}" for number, call in enumerate(calls, 1)}
    made: dict[str, TracedCall] = {}
    ended: dict[str, float] = {}
    for call in calls:
        earlier = [each for each in calls if each.id in ended and each.ended <= call.began]
        after = _by_times(call, earlier, made, numbers) if call.after is None else tuple(
            numbers[source] for source in call.after if source in ended
        )  # fmt: skip
        ends = [ended[source.id] for source in calls if source.id in ended and numbers[source.id] in after]
        since = max(ends, default=began)
        node = numbers[call.id]
        prompt = _prompt(call, f"{name} {node}", [made[each] for each in after])
        made[node] = TracedCall(node, after, prompt, call.output_tokens, max(0.0, call.began - since))
        ended[call.id] = call.ended
    deadline = next((call.deadline_seconds for call in calls if call.deadline_seconds is not None), None)
    workflow_class = next((call.workflow_class for call in calls if call.workflow_class is not None), None)
    return TracedWorkflow(began - origin, name, KIND, tuple(made.values()), deadline, workflow_class)


def _by_times(
    call: Seen, earlier: list[Seen], made: dict[str, TracedCall], numbers: dict[str, str]
) -> tuple[str, ...]:  # fmt: skip
    """Those that had ended, less those that others of them waited for."""
    del call
    names = [numbers[each.id] for each in earlier]
    covered: set[str] = set()
    todo = [source for name in names for source in made[name].after]
    while todo:
        name = todo.pop()
        if name not in covered:
            covered.add(name)
            todo += made[name].after
    return tuple(name for name in names if name not in covered)


def _prompt(call: Seen, own: str, sources: list[TracedCall]) -> tuple[tuple[str, int], ...]:
    """Its parts by name: what is shared has names that others have, the rest one of its own.

    Without hashes, what was cached is taken for the beginning of the first call that it waits for, or, where there is
    none, for a text that all such calls begin with.
    """
    parts = named(call.prefix, call.prompt_tokens)
    if not parts and call.cached_tokens:
        left = min(call.cached_tokens, call.prompt_tokens - 1)
        for name, tokens in sources[0].prompt if sources else ((f"c{hashed('shared')}", left),):
            if left > 0:
                parts.append((name, min(tokens, left)))
                left -= parts[-1][1]
    used = sum(tokens for _, tokens in parts)
    return (*parts, (f"t{hashed(own)}", call.prompt_tokens - used))
