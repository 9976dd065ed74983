"""What do a gateway's logs tell of its traffic? The event log tells most; the call log lengths, times and workflows."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.programs import BenchError
from scheduler.workflow.inference import PREFIX_BYTES
from scheduler.workflow.spec import NodeSpec, WorkflowSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

OWN_SCHEMES = ("joulegate-body", "joulegate-header", "native")
BYTES_PER_TOKEN = 4.5
"""Of English prose, to tell how many tokens a hashed prefix has."""


class Seen(NamedTuple):
    """A call as a log tells of it. Times are seconds of the log's clock."""

    id: str
    workflow: str
    node: str
    after: tuple[str, ...] | None
    """Ids of calls; None: nobody said, so times must tell."""
    began: float
    ended: float
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    prefix: tuple[str, ...] = ()
    """Names of its leading text at growing lengths (PREFIX_BYTES)."""
    deadline_seconds: float | None = None
    workflow_class: str | None = None


class Found(NamedTuple):
    """All calls, and how many could not be told of."""

    calls: list[Seen]
    left_out: int
    source: str
    graph: str
    """How it is known what waits for what."""


def read_log(path: Path) -> Found:
    """BenchError for a file that is neither log."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
            head = _json(first)
            file.seek(0)
            if isinstance(head, dict) and "joulegate_event_log" in head:
                return _EventLog().read(_lines(file))
            if isinstance(head, dict) and "event" in head and "ts" in head:
                return _call_log(_lines(file))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read: {error.strerror}") from None
    raise BenchError(f"{path}: is neither an event log ([event_log] path) nor a call log ([log] path) of joulegate")


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _lines(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Whole ones; the last may be cut."""
    for line in file:
        found = _json(line)
        if isinstance(found, dict):
            yield found


class _EventLog:
    """Events of one gateway, in their order."""

    def __init__(self) -> None:
        self._arrived: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self._placed: dict[str, dict[str, Any]] = {}
        self._edges: dict[tuple[str, str], tuple[str, ...]] = {}
        """Of declared workflows: (workflow, node) → nodes that it waits for."""
        self._promises: dict[str, tuple[float | None, str | None]] = {}

    def read(self, lines: Iterator[dict[str, Any]]) -> Found:
        for line in lines:
            kind = line.get("event")
            if kind == "CallArrived":
                self._arrived[line["call_id"]] = line
            elif kind == "CallFinished":
                self._ended[line["call_id"]] = line
            elif kind == "CallPlaced":
                self._placed[line["call_id"]] = line
            elif kind == "WorkflowDeclared":
                self._declared(WorkflowSpec(*line["spec"]))
        calls = [self._seen(call_id, line) for call_id, line in self._arrived.items()]
        known = [call for call in calls if call is not None]
        return Found(known, len(calls) - len(known), "event log", "as the clients said, else by content, else by times")

    def _declared(self, spec: WorkflowSpec) -> None:
        self._promises[spec.workflow_id] = spec.deadline_seconds, spec.workflow_class
        for each in spec.nodes:
            node = NodeSpec(*each)
            self._edges[spec.workflow_id, node.id] = tuple(dict.fromkeys([*node.after, *node.data_from]))

    def _seen(self, call_id: str, line: dict[str, Any]) -> Seen | None:
        end, placed = self._ended.get(call_id), self._placed.get(call_id)
        if end is None:
            return None
        prompt = end["prompt_tokens"] or line["prompt_tokens_estimate"]
        output = end["output_tokens"] or end.get("output_tokens_seen") or 0
        if prompt < 1 or output < 1:
            return None
        workflow, node = line["workflow_id"], line["node"]
        deadline_ms, workflow_class = line["deadline_ms"], line["workflow_class"]
        deadline = None if deadline_ms is None else deadline_ms / 1e3
        if workflow in self._promises:
            deadline, workflow_class = self._promises[workflow]
        after = self._after(line, placed)
        prefix = () if placed is None else tuple(f"{value:x}" for value in placed["prefix"])
        return Seen(
            call_id, workflow, node or call_id, after, line["now"], end["now"], prompt, end["cached_tokens"], output,
            prefix, deadline, workflow_class,
        )  # fmt: skip

    def _after(self, line: dict[str, Any], placed: dict[str, Any] | None) -> tuple[str, ...] | None:
        workflow, node = line["workflow_id"], line["node"]
        names = line["after"] or self._edges.get((workflow, node), ())
        if names or (workflow, node) in self._edges or line["identity_source"] in OWN_SCHEMES:
            by_name = {
                each["node"]: call_id for call_id, each in self._arrived.items() if each["workflow_id"] == workflow
            }
            return tuple(by_name[name] for name in names if name in by_name)
        if placed is not None:
            sources = [placed["turn_of"], *(source for source, _ in placed["data_from"])]
            return tuple(dict.fromkeys(source for source in sources if source in self._arrived))
        return None


def _call_log(lines: Iterator[dict[str, Any]]) -> Found:
    calls: list[Seen] = []
    left_out = 0
    for line in lines:
        if line.get("event") != "call":
            continue
        prompt, output, took = line.get("prompt_tokens"), line.get("output_tokens"), line.get("duration_ms")
        if not prompt or not output or took is None:
            left_out += 1
            continue
        began = datetime.fromisoformat(line["ts"]).timestamp()
        workflow = line["workflow"]
        calls.append(
            Seen(
                line["id"], workflow["id"], workflow["node"] or line["id"], None, began, began + took / 1e3, prompt,
                line["cached_tokens"], output,
            )
        )  # fmt: skip
    return Found(calls, left_out, "call log", "by times: a call waits for those of its workflow that had ended")


def named(prefix: tuple[str, ...], tokens: int) -> list[tuple[str, int]]:
    """The leading parts of a prompt by their hashes: (name, tokens) each."""
    parts: list[tuple[str, int]] = []
    used = 0
    for bytes_upto, name in zip(PREFIX_BYTES, prefix, strict=False):
        upto = min(round(bytes_upto / BYTES_PER_TOKEN), tokens - 1)
        if upto > used:
            parts.append((f"h{name}", upto - used))
            used = upto
    return parts


def hashed(text: str) -> str:
    """A name that says nothing."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
