"""One submitted workflow under way: which nodes may run, what they said, what failed and what is therefore not run.

No I/O: `Runner` does that. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from itertools import islice
from time import time
from typing import TYPE_CHECKING, Any

from proxy.energy.answer import UNAVAILABLE
from proxy.errors import RequestFault
from proxy.workflows.nodes import Manner
from proxy.workflows.placeholders import size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from proxy.inner import InnerCall
    from proxy.workflows.placeholders import Request
    from proxy.workflows.submission import Submission
    from scheduler.workflow.spec import NodeSpec

    Listener = Callable[[str, "NodeRun | None"], None]


class NodeStatus(StrEnum):
    """Where a node stands."""

    PLANNED = "planned"
    READY = "ready"
    """All that it waits for is there; it has not been sent to an engine (it may be held)."""
    RUNNING = "running"
    ACTING = "acting"
    """A tool: its client is at work on it."""
    FINISHED = "finished"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not run, because something it waits for failed."""
    CANCELLED = "cancelled"


_PLANNED, _FAILED = NodeStatus.PLANNED, NodeStatus.FAILED
"""Said once: to take a member out of an enumeration is a call, and runs have many nodes."""
_USUALLY = Manner()
_DONE = object()
TOLD_A_TURN = 5000
"""Nodes: 2 ms."""
LINKED_A_TURN = 1000
"""Nodes: a millisecond or two. They are put together behind the answer, which may be all that a client waits for."""
OVER = frozenset((NodeStatus.FINISHED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.CANCELLED))


class NodeRun:
    """A node of a workflow that runs here."""

    __slots__ = (
        "attempts",
        "consumers",
        "endpoint",
        "energy",
        "error",
        "inner",
        "output",
        "pieces",
        "ready_at",
        "request",
        "retry",
        "said",
        "spec",
        "status",
        "usage",
        "waits_for",
    )

    def __init__(self, spec: NodeSpec, request: Request | None, manner: Manner) -> None:
        self.spec = spec
        self.request = request
        """What is sent for it; None: nothing, it is a tool, or it is over."""
        self.endpoint, self.retry = manner
        self.status = _PLANNED
        self.waits_for = 0
        """Nodes before it that are not finished."""
        self.consumers: list[NodeRun] = []
        self.output: str | None = None
        self.pieces: list[str] = []
        """What a stream has said so far."""
        self.said = 0
        """Characters in `pieces`."""
        self.error: dict[str, Any] | None = None
        self.usage: dict[str, int | None] | None = None
        self.energy: dict[str, object] = UNAVAILABLE
        """What its call is thought to have used, as its end said it."""
        self.attempts = 0
        self.ready_at: float | None = None
        self.inner: InnerCall | None = None


def _linking(submission: Submission, nodes: dict[str, NodeRun]) -> Iterator[None]:
    """Enter the nodes by name, then make each known to those it waits for; some at a time, if there are many."""
    manner = submission.manners.get
    many = len(submission.specs) > LINKED_A_TURN
    for number, (spec, request) in enumerate(zip(submission.specs, submission.requests, strict=True)):
        nodes[spec[0]] = NodeRun(spec, request, manner(spec[0], _USUALLY))
        if many and number % LINKED_A_TURN == LINKED_A_TURN - 1:
            yield
    for number, node in enumerate(nodes.values()):
        if many and number % LINKED_A_TURN == LINKED_A_TURN - 1:
            yield
        _, after, data_from = node.spec[:3]
        if not after and not data_from:
            continue
        before: Collection[str] = (*after, *data_from) if data_from else after
        if len(before) > 1:
            before = dict.fromkeys(before)
        node.waits_for = len(before)
        for name in before:
            nodes[name].consumers.append(node)


class HeldBytes:
    """What all runs together keep in memory: requests not yet filled, outputs."""

    def __init__(self) -> None:
        self.count = 0


class WorkflowRun:
    """The graph of one submission, being worked off. `listeners` hear of each change: (event, node)."""

    def __init__(self, run_id: str, key_name: str, submission: Submission, now: float, held: HeldBytes) -> None:
        self.id = run_id
        self.key_name = key_name
        self.submission = submission._replace(specs=(), requests=[], manners={})  # each stands in its node
        self._held = held
        self.status = "running"
        self.created_unix_seconds = time()
        self.started_at = now
        self.finished_at: float | None = None
        self._nodes: dict[str, NodeRun] = {}
        self._specs = submission.specs
        self._linking: Iterator[None] | None = _linking(submission, self._nodes)
        self.begun = False
        """Until then nothing has happened to any node."""
        self.ready: deque[NodeRun] = deque()
        """To be started by the runner."""
        self.untold: deque[Iterator[NodeRun]] = deque()
        """Nodes that do not know so far that one that they wait for has finished."""
        self.telling = False
        """A later turn of the loop goes on with these."""
        self.listeners: list[Listener] = []
        self.unfinished = len(submission.specs)
        self.trace_fields: dict[bytes, bytes] = {}
        """The submitter's trace, which the calls belong to."""
        self.held_bytes = 0
        self._hold(submission.request_bytes)

    @property
    def nodes(self) -> dict[str, NodeRun]:
        """By name, in the order of the submission."""
        while not self.linked():
            pass
        return self._nodes

    @property
    def names(self) -> list[str]:
        """Of all nodes."""
        return list(self._nodes) if self._linking is None else [spec[0] for spec in self._specs]

    def linked(self) -> bool:
        """Go on putting the nodes together, as long as one turn of the loop may take; whether that is done."""
        if self._linking is not None and next(self._linking, _DONE) is _DONE:
            self._linking, self._specs = None, ()
        return self._linking is None

    @property
    def outputs(self) -> Iterable[str]:
        """The names of the nodes whose outputs the user waits for: given, or those that nobody waits for."""
        given = self.submission.outputs
        return given or [name for name, node in self.nodes.items() if not node.consumers]

    @property
    def over(self) -> bool:
        """Nothing runs and nothing will."""
        return self.status != "running"

    def begin(self, now: float) -> None:
        """Start with the nodes that wait for nothing."""
        self.begun = True
        for node in self.nodes.values():
            if not node.waits_for:
                self._make_ready(node, now)

    def outputs_of(self, node: NodeRun) -> dict[str, str]:
        """What a node's request is filled with."""
        return {name: self.nodes[name].output or "" for name in node.spec.data_from}

    def sent(self, node: NodeRun) -> None:
        """The node's call has been written to an engine."""
        node.status = NodeStatus.RUNNING
        self._tell("node.started", node)

    def delta(self, node: NodeRun, text: str) -> None:
        """A stream said something more."""
        node.pieces.append(text)
        node.said += len(text)
        self._tell("node.delta", node)

    def finished(self, node: NodeRun, output: str, usage: dict[str, int | None] | None, now: float) -> None:
        """A node has its output: what waited for it may be ready now."""
        node.status, node.output, node.usage, node.inner = NodeStatus.FINISHED, output, usage, None
        self._hold(len(output))
        self.unfinished -= 1
        try:
            self._tell("node.finished", node)  # streams of slow readers may not have told all pieces so far
        finally:
            node.pieces = []
        if node.consumers:
            self.untold.append(iter(node.consumers))
            self.tell_on(now)
        self._end_if_done(now)

    def tell_on(self, now: float) -> None:
        """Some more of the nodes that wait for a finished one learn of it: there may be very many. The caller goes on
        until `untold` is empty."""
        left = TOLD_A_TURN
        while self.untold and left:
            for consumer in islice(self.untold[0], left):
                left -= 1
                consumer.waits_for -= 1
                if not consumer.waits_for and consumer.status is _PLANNED:
                    self._make_ready(consumer, now)
            if left:
                self.untold.popleft()

    def failed(self, node: NodeRun, error: dict[str, Any], now: float) -> None:
        """A node will have no output: what is behind it is not run; the rest is."""
        node.status, node.error, node.inner = NodeStatus.FAILED, error, None
        self.unfinished -= 1
        try:
            self._tell("node.failed", node)
        finally:
            node.pieces = []
        todo = deque(node.consumers)
        while todo:
            behind = todo.popleft()
            if behind.status is _PLANNED:
                behind.status = NodeStatus.SKIPPED
                message = f"not run, because node {node.spec.id!r} failed"
                behind.error = {"status": None, "code": "skipped", "message": message, "node": node.spec.id}
                self.unfinished -= 1
                self._tell("node.skipped", behind)
                todo += behind.consumers
        self._end_if_done(now)

    def tool_done(self, node_id: str, output: str | None, error: str | None, now: float) -> None:
        """A client posts what its tool gave, or why it gave nothing. RequestFault if no tool of that name acts."""
        node = self.nodes.get(node_id)
        if node is None or not node.spec.tool:
            raise RequestFault(404, "unknown_node", f"the workflow has no tool {node_id[:128]!r}", param="node")
        if node.status is not NodeStatus.ACTING:
            message = f"tool {node_id!r} is {node.status}; a result is taken once, and while it acts"
            raise RequestFault(409, "tool_not_acting", message, param="node")
        if error is not None:
            self.failed(node, {"status": None, "code": "tool_failed", "message": error}, now)
        else:
            self.finished(node, output or "", None, now)

    @property
    def calls(self) -> list[InnerCall]:
        """Those under way."""
        return [node.inner for node in self.nodes.values() if node.inner is not None]

    @property
    def waits_for_client(self) -> bool:
        """Nothing of it goes on or waits for its turn here: at most tools act."""
        states = {node.status for node in self.nodes.values()}
        return states.isdisjoint((NodeStatus.READY, NodeStatus.RUNNING))

    def cancel(self, now: float) -> None:
        """End it. Its calls are the runner's to cancel."""
        if self.over:
            return
        self.begun = True
        ended = [node for node in self.nodes.values() if node.status not in OVER]
        for node in ended:
            node.status, node.inner = NodeStatus.CANCELLED, None
        self.ready.clear()
        self.untold.clear()
        self.unfinished = 0
        try:
            for node in ended:
                self._tell("node.cancelled", node)
                node.pieces = []
        finally:
            self._end("cancelled", now)

    def retrying(self, node: NodeRun) -> None:
        """A failed attempt is followed by another: what its stream said is void."""
        self.held_back(node)
        self._tell("node.retrying", node)

    def held_back(self, node: NodeRun) -> None:
        """The node was turned away before it was begun; its turn comes later."""
        node.status, node.inner, node.pieces, node.said = NodeStatus.READY, None, [], 0

    def release(self) -> None:
        """The run is forgotten: what it held is free."""
        self._hold(-self.held_bytes)

    # --- inside ---

    def _hold(self, count: int) -> None:
        self.held_bytes += count
        self._held.count += count

    def _make_ready(self, node: NodeRun, now: float) -> None:
        node.ready_at = now
        if node.spec.tool:
            node.status = NodeStatus.ACTING
            self._tell("tool.started", node)
        else:
            node.status = NodeStatus.READY
            self.ready.append(node)

    def _end_if_done(self, now: float) -> None:
        if not self.unfinished and not self.over:
            failed = any(node.status is _FAILED for node in self.nodes.values())
            self._end("failed" if failed else "completed", now)

    def _end(self, status: str, now: float) -> None:
        self.status, self.finished_at = status, now
        for node in self.nodes.values():
            if node.request is not None:
                self._hold(-size_of(node.request))
                node.request = None
        self._tell("workflow.finished", None)

    def _tell(self, event: str, node: NodeRun | None) -> None:
        """All hear of it, whatever becomes of one of them."""
        failed: Exception | None = None
        for listener in list(self.listeners):
            try:
                listener(event, node)
            except Exception as error:  # noqa: BLE001  (raised below)
                failed = failed or error
        if failed is not None:
            raise failed
