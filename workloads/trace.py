"""What is kept of live traffic, so that it can be played again? Lengths, times, graphs and hashes of prefixes; no text.

A file of JSON lines: a head, then a line a workflow in the order of their beginnings. docs/bench.md describes it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from workloads.shapes import CallShape, Part, WorkflowShape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION = 1
TOKENS_MAX = 10_000_000


class TraceFault(ValueError):
    """A file that is no trace; the message names the line."""


class TracedCall(NamedTuple):
    """A call as it was. `prompt`: (name, tokens) each: equal names are equal text. `pause_seconds`: from the last end
    of what it waits for (its workflow's beginning) to its arrival."""

    node: str
    after: tuple[str, ...]
    prompt: tuple[tuple[str, int], ...]
    output_tokens: int
    pause_seconds: float


class TracedWorkflow(NamedTuple):
    """A workflow as it was; `at_seconds` since the trace began."""

    at_seconds: float
    id: str
    kind: str
    calls: tuple[TracedCall, ...]
    deadline_seconds: float | None = None
    workflow_class: str | None = None


class Trace(NamedTuple):
    """All of it. `head`: where it is from, and how prefixes are known."""

    head: dict[str, Any]
    workflows: tuple[TracedWorkflow, ...]


def write_trace(path: Path, trace: Trace) -> None:
    """OSError if it cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"joulegate_trace": VERSION, **trace.head}) + "\n")
        for workflow in trace.workflows:
            line = workflow._asdict() | {"calls": [call._asdict() for call in workflow.calls]}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    fresh.replace(path)


def read_trace(path: Path) -> Trace:
    """TraceFault."""
    head: dict[str, Any] | None = None
    workflows: list[TracedWorkflow] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    found = json.loads(line)
                    if head is None:
                        if found["joulegate_trace"] != VERSION:
                            raise ValueError(f"is of version {found['joulegate_trace']!r}, not {VERSION}")
                        head = {name: value for name, value in found.items() if name != "joulegate_trace"}
                    else:
                        workflows.append(_workflow(found))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise TraceFault(f"{path}:{number}: not a line of a trace: {error!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceFault(f"{path}: cannot be read: {error}") from None
    if head is None or not workflows:
        raise TraceFault(f"{path}: has no workflow")
    return Trace(head, tuple(sorted(workflows, key=lambda each: each.at_seconds)))


def _workflow(found: dict[str, Any]) -> TracedWorkflow:
    calls = []
    seen: set[str] = set()
    for each in found["calls"]:
        call = TracedCall(
            str(each["node"]), tuple(map(str, each["after"])), tuple((str(n), int(t)) for n, t in each["prompt"]),
            int(each["output_tokens"]), float(each["pause_seconds"]),
        )  # fmt: skip
        if unknown := set(call.after) - seen:
            raise ValueError(f"{call.node} waits for {', '.join(sorted(unknown))}, which is no call before it")
        if call.node in seen or not call.prompt:
            raise ValueError(f"{call.node} is there twice, or has no prompt")
        lengths = (*(tokens for _, tokens in call.prompt), call.output_tokens)
        if not all(1 <= tokens <= TOKENS_MAX for tokens in lengths) or not 0 <= call.pause_seconds < 1e9:
            raise ValueError(f"{call.node} has an impossible length or pause")
        seen.add(call.node)
        calls.append(call)
    if not calls:
        raise ValueError("a workflow without calls")
    at, deadline, workflow_class = float(found["at_seconds"]), found["deadline_seconds"], found["workflow_class"]
    return TracedWorkflow(at, str(found["id"]), str(found["kind"]), tuple(calls), deadline, workflow_class)


def arrivals_of(trace: Trace, prefix: str) -> Iterator[tuple[float, WorkflowShape]]:
    """(seconds, workflow) each. `prefix` goes before the ids."""
    for number, workflow in enumerate(trace.workflows, 1):
        calls = tuple(
            CallShape(
                call.node, call.after, tuple(Part(name, tokens) for name, tokens in call.prompt), call.output_tokens,
                call.pause_seconds,
            )
            for call in workflow.calls
        )  # fmt: skip
        yield workflow.at_seconds, WorkflowShape(f"{prefix}-{number}", workflow.kind, calls)
