"""A workflow in JSON, whole: its graph, and what its run says of it.

A large one is put together in several turns of the loop, so that other people's streams go on between.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from proxy.energy.answer import call_members, sum_members
from proxy.workflows.views import node_view, summary
from scheduler.workflow.describe import edges_json, head_json, node_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.workflows.run import WorkflowRun
    from scheduler.energy.bill import Bill
    from scheduler.workflow.workflow import Workflow

A_TURN = 100
"""Nodes or edges: some 2 ms."""


async def whole(workflow: Workflow | None, run: WorkflowRun | None, bill: Bill) -> dict[str, Any]:
    """To be written with orjson. At least one of both is known. Joules are as they are billed by now."""
    now = monotonic()
    shown: dict[str, Any] = {}
    if workflow is not None:
        shown |= head_json(workflow, now)
    if run is not None:
        shown |= summary(run)
    if workflow is not None:
        calls = [node for node in workflow.graph.nodes.values() if node.call_id is not None and node.over]
        shown |= sum_members([call_members(bill.call(node.call_id or "")) for node in calls])
    critical = frozenset(shown.get("critical_path", ()))
    shown["nodes"] = await _list(_nodes(workflow, run, now, critical, bill))
    shown["edges"] = await _list(iter(()) if workflow is None else edges_json(workflow))
    return shown


def _nodes(
    workflow: Workflow | None, run: WorkflowRun | None, now: float, critical: frozenset[str], bill: Bill
) -> Iterator[dict[str, Any]]:
    """In the order of the submission, then what is in the graph beside it."""
    known = {} if workflow is None else dict(workflow.graph.nodes)
    of_run = {} if run is None else run.nodes
    for name in dict.fromkeys((*of_run, *known)):
        shown: dict[str, Any] = {"id": name}
        node = known.get(name)
        if workflow is not None and node is not None:
            if workflow.graph.nodes.get(name) is node:  # it may have been forgotten since
                shown |= node_json(workflow, node, now, critical)
            elif name not in of_run:
                continue
        if run is not None and name in of_run:
            shown |= node_view(run, of_run[name])
        if node is not None and node.call_id is not None:
            shown |= call_members(bill.call(node.call_id))
        yield shown


async def _list(items: Iterator[dict[str, Any]]) -> orjson.Fragment:
    written: list[bytes] = []
    while some := list(islice(items, A_TURN)):
        written.append(orjson.dumps(some)[1:-1])
        if len(some) == A_TURN:
            await asyncio.sleep(0)
    return orjson.Fragment(b"[%b]" % b",".join(written))
