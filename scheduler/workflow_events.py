"""Which events are for the book of workflows, and what comes of them?"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from scheduler.actions import Reject
from scheduler.events import CallPlaced, NodeEnded, NodesAdded, WorkflowDeclared, WorkflowEnded
from scheduler.workflow.extending import extend
from scheduler.workflow.spec import GraphFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from scheduler.actions import Action
    from scheduler.energy.desk import EnergyDesk
    from scheduler.state import CallState
    from scheduler.workflow.book import WorkflowBook

RETRY_SECONDS = 1.0


class WorkflowEvents:
    """Handlers of the scheduler's: what is said of workflows, beside their calls."""

    def __init__(self, book: WorkflowBook, energy: EnergyDesk, calls: Mapping[str, CallState]) -> None:
        self._book = book
        self._energy = energy
        self._calls = calls
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            WorkflowDeclared: self._declared,
            NodesAdded: self._nodes_added,
            NodeEnded: self._node_ended,
            WorkflowEnded: self._ended,
            CallPlaced: self._placed,
        }

    def _declared(self, event: WorkflowDeclared, now: float, actions: list[Action]) -> None:
        try:
            self._book.declare(event.spec, now)
        except GraphFault as fault:
            retry = RETRY_SECONDS if fault.status == 503 else None
            actions.append(Reject(event.call_id, fault.status, fault.reason, fault.message, retry, fault.param))
        else:
            spec = event.spec
            self._energy.budgets.declare(spec.key, spec.workflow_id, spec.energy_budget_joules, now)

    def _nodes_added(self, event: NodesAdded, now: float, actions: list[Action]) -> None:
        with suppress(GraphFault):  # nobody is asked: their calls grow the graph as they come
            extend(self._book, event.key, event.workflow_id, event.nodes, now)

    def _node_ended(self, event: NodeEnded, now: float, actions: list[Action]) -> None:
        if event.failed:
            self._book.node_failed(event.key, event.workflow_id, event.node, now, event.reason or "failed")
        else:
            self._book.tool_finished(event.key, event.workflow_id, event.node, now)

    def _ended(self, event: WorkflowEnded, now: float, actions: list[Action]) -> None:
        if event.outcome == "cancelled":
            self._book.cancel(event.key, event.workflow_id, now)
        else:
            self._book.close(event.key, event.workflow_id, now)

    def _placed(self, event: CallPlaced, now: float, actions: list[Action]) -> None:
        if (call := self._calls.get(event.call_id)) is not None:
            self._energy.placed(event.call_id, call.engine, event.prefix)
        self._book.placed(
            event.call_id,
            now,
            turn_of=event.turn_of,
            turn_confidence=event.turn_confidence,
            data_from=event.data_from,
            fingerprint=event.fingerprint,
            prefix=event.prefix,
        )
