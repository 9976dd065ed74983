"""A submitted workflow as server-sent events: what has happened so far, then each change as it comes.

A client that reads slowly loses nothing: what nodes say meanwhile is kept anyway, and follows in one piece.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from proxy.workflows.run import OVER, NodeStatus
from proxy.workflows.views import node_view, summary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.own.request import OwnRequest
    from proxy.workflows.run import NodeRun, WorkflowRun

_BEGUN = {NodeStatus.RUNNING: "node.started", NodeStatus.ACTING: "tool.started"}
KEEP_ALIVE_SECONDS = 15.0
"""A line that means nothing is sent so often where nothing else is: what stands in between closes silent streams."""


def event_bytes(name: str, data: dict[str, Any]) -> bytes:
    """One event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), orjson.dumps(data))


class RunStream:
    """One client's view of a run."""

    def __init__(self, request: OwnRequest, run: WorkflowRun, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._request = request
        self._more = more
        """Further headers."""
        self._run = run
        self._unsent: dict[str, int] = {}
        """Nodes whose latest pieces wait for the client, with the first of them."""
        self._waiting: list[bytes] = []
        """Other events that wait for it, at most a few a node."""
        self._over = asyncio.Event()

    async def play(self) -> None:
        """Send until the run is over. CancelledError when the client goes."""
        request, run = self._request, self._run
        own = [(b"x-workflow-id", run.id.encode("ascii")), (b"cache-control", b"no-cache"), *self._more]
        request.begin_stream(headers=own)
        request.on_resume = self._resume
        self._send(event_bytes("workflow.started", {"id": run.id, "nodes": run.names}))
        for node in run.nodes.values() if run.begun else ():
            if node.status in OVER:
                self._node(f"node.{node.status}", node)
                continue
            if (begun := _BEGUN.get(node.status)) is not None:
                self._node(begun, node)
            if node.pieces:
                self._send(event_bytes("node.delta", {"node": node.spec.id, "delta": "".join(node.pieces)}))
        run.listeners.append(self._changed)
        try:
            if run.over:
                self._changed("workflow.finished", None)
            while not self._over.is_set():
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await self._over.wait()
                except TimeoutError:
                    if not request.write_paused:
                        request.send(b": waiting\n\n")
        finally:
            run.listeners.remove(self._changed)
        request.end()

    def _changed(self, event: str, node: NodeRun | None) -> None:
        if node is None:
            self._flush()
            self._request.send(event_bytes(event, summary(self._run)))
            self._over.set()
        elif event == "node.delta":
            self._delta(node)
        else:
            if event == "node.retrying":  # what it said is void
                self._unsent.pop(node.spec.id, None)
            elif node.spec.id in self._unsent:
                self._flush_node(node)
            self._node(event, node)

    def _delta(self, node: NodeRun) -> None:
        if self._request.write_paused:
            self._unsent.setdefault(node.spec.id, len(node.pieces) - 1)
        else:
            self._send(event_bytes("node.delta", {"node": node.spec.id, "delta": node.pieces[-1]}))

    def _node(self, event: str, node: NodeRun) -> None:
        self._send(event_bytes(event, {"node": node.spec.id, **node_view(self._run, node)}))

    def _send(self, data: bytes) -> None:
        if self._request.write_paused:
            self._waiting.append(data)
        else:
            self._request.send(data)

    def _resume(self) -> None:
        self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._request.send(b"".join(waiting))
        for name in list(self._unsent):
            self._flush_node(self._run.nodes[name])

    def _flush_node(self, node: NodeRun) -> None:
        start = self._unsent.pop(node.spec.id)
        if text := "".join(node.pieces[start:]):
            self._send(event_bytes("node.delta", {"node": node.spec.id, "delta": text}))
