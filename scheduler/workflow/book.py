"""What is told about workflows, and what is known of them then: the one object that the scheduler core speaks to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scheduler.workflow.declaring import build, shown
from scheduler.workflow.forecasts import Forecast, Forecasts, pattern_of
from scheduler.workflow.growth import bind, judge_deadline, judge_hint, node_of, note_hints, tools_before
from scheduler.workflow.merging import place
from scheduler.workflow.objective import objective, task_group, task_groups
from scheduler.workflow.spec import GraphFault, WorkflowLimits
from scheduler.workflow.tables import WorkflowTables
from scheduler.workflow.workflow import Origin, Outcome, Workflow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.events import CallArrived, CallFinished
    from scheduler.workflow.durations import DurationModel
    from scheduler.workflow.node import Node, NodeState
    from scheduler.workflow.objective import TaskGroup
    from scheduler.workflow.spec import Criterion, WorkflowSpec

LIVE_STATES = frozenset(("queued", "running"))
BINDABLE_STATES = frozenset(("planned", "ready", "failed", "cancelled", "skipped"))


class Change(NamedTuple):
    """What an event led to in its workflow."""

    workflow: Workflow
    node: Node
    ready: tuple[Node, ...] = ()
    """Nodes whose time has come: calls that can be made, tools that the client runs from now on."""
    skipped: tuple[Node, ...] = ()
    """Nodes that will not run because something they need did not finish."""

    @property
    def closed(self) -> bool:
        """The workflow is over; it can still be read."""
        return self.workflow.closed_at is not None


class WorkflowBook:
    """All workflows of all keys. Pure and synchronous; `now` is in seconds of a clock that never goes back.

    Calls are known by the ids of their events. Every method takes ids that it does not know, and answers None.
    """

    def __init__(self, limits: WorkflowLimits | None = None, durations: DurationModel | None = None) -> None:
        self.limits = limits or WorkflowLimits()
        self.forecasts = Forecasts(self.limits, durations)
        self.tables = WorkflowTables(self.limits)
        self.templates = self.tables.templates
        self.untold: dict[Workflow, None] = {}
        """Workflows in which a node has finished that very many wait for: `tell_on` until there are none."""

    # --- declared workflows ---

    def declare(self, spec: WorkflowSpec, now: float) -> Workflow:
        """Take in a whole graph; its `ready` nodes can run at once. Raises GraphFault, and nothing has changed: 400 for
        a bad graph, 409 for an id that is in use, 413 for too large a one, 503 where there is no room now."""
        name = (spec.key, spec.workflow_id)
        if self.tables.live_named(name) is not None:
            message = f"a workflow {shown(spec.workflow_id)} is under way; wait for its end or use another id"
            raise GraphFault(409, "workflow_exists", message, "id")
        workflow = Workflow(spec.key, spec.workflow_id, "declared", now, self.limits)
        workflow.known_as(spec.name, spec.nodes[0].id if spec.nodes else None)
        workflow.workflow_class = spec.workflow_class
        workflow.energy_budget_joules = spec.energy_budget_joules
        workflow.run_here = spec.run_here
        workflow.outputs = frozenset(spec.outputs)
        if spec.deadline_seconds is not None:
            workflow.deadline_at = now + spec.deadline_seconds
        build(workflow, spec, self.forecasts)
        graph = workflow.graph
        if not self.tables.has_room(spec.key, "declared", len(graph.nodes), graph.edge_count, 1, now):
            raise GraphFault(503, "workflows_full", "too many workflows are under way; try again later")
        self.tables.enter(workflow)
        self.become_ready([node for node in graph.nodes.values() if not node.waiting_for], now)
        workflow.acting_since = now
        judge_deadline(workflow, workflow.isolated_seconds(), now)
        return workflow

    def tool_finished(self, key: str, workflow_id: str, node_id: str, now: float) -> Change | None:
        """The client's tool is done. None if there is no such tool at work."""
        node = self._declared(key, workflow_id, node_id)
        if node is None or node.state != "acting":
            return None
        self.tables.touch(node.workflow, now)
        ready = self._finish(node, now)
        self._settle(node.workflow, now)
        return Change(node.workflow, node, ready)

    def node_failed(self, key: str, workflow_id: str, node_id: str, now: float, reason: str) -> Change | None:
        """A tool failed, or no (further) call of the node will come: what needs it is skipped. None for nodes that
        finished, and for those whose call is live: it has an end of its own."""
        node = self._declared(key, workflow_id, node_id)
        if node is None or node.state == "finished" or node.state in LIVE_STATES:
            return None
        return self._stopped(node, now, "failed", reason, last=True)

    def _declared(self, key: str, workflow_id: str, node_id: str) -> Node | None:
        workflow = self.tables.live_named((key, workflow_id))
        return None if workflow is None else workflow.graph.nodes.get(node_id)

    # --- a call's life ---

    def call_arrived(self, event: CallArrived, now: float) -> Node | None:
        """Bind a call to its node, which is made if there is none; `Node.workflow` is its workflow.

        A call without `workflow_id` gets a workflow of its own, whose id is the call's, to be placed by its content.
        None: there was no room, and the call is of no workflow that is known here.
        """
        tables = self.tables
        workflow = tables.live_named((event.key, event.workflow_id)) if event.workflow_id else None
        if not event.workflow_id and (event.node is not None or event.after):
            event = event._replace(node=None, after=())  # names of nothing
        if workflow is None:
            origin: Origin = "hinted" if event.workflow_id else "content"
            if not tables.has_room(event.key, origin, 1, 0, 1, now):
                return None
            workflow = Workflow(event.key, event.workflow_id or event.call_id, origin, now, self.limits)
            workflow.known_as(None, pattern_of(event.node) if event.node else event.model)
            tables.enter(workflow)
        elif not self._room_for(workflow, event, now):
            return None
        graph = workflow.graph
        tables.touch(workflow, now)
        note_hints(workflow, event, now)
        workflow.edges_max = tables.edges_allowed(workflow)
        nodes, edges = len(graph.nodes), graph.edge_count + workflow.pending_count
        node = node_of(workflow, event)
        tables.count(workflow, len(graph.nodes) - nodes, graph.edge_count + workflow.pending_count - edges)
        if graph.untold:
            self.become_ready(graph.tell(node), now)
        if node.waiting_for and workflow.origin == "declared":
            self._tools_are_done(node, now)
        if node.over:
            graph.revived(node)
            if node.prefix:
                tables.prefixes.add(node)
        bind(self, node, event, now)
        self._predict(node)
        graph.queued(node, now)
        judge_hint(workflow, node, event, now)
        workflow.live_calls += 1
        workflow.latest[event.node or ""] = node
        return node

    def call_started(self, call_id: str, now: float) -> Node | None:
        """The call was sent to an engine."""
        node = self.tables.by_call.get(call_id)
        if node is None or node.state != "queued":
            return None
        node.workflow.graph.started(node, now)
        return node

    def retried(self, call_id: str, now: float) -> Node | None:
        """The attempt failed and the call is held again, to be sent once more."""
        node = self.tables.by_call.get(call_id)
        if node is None or node.state != "running":
            return None
        node.workflow.graph.requeued(node, now)
        node.attempts += 1
        return node

    def call_finished(self, event: CallFinished, now: float) -> Change | None:
        """The call was answered."""
        node = self.tables.by_call.get(event.call_id)
        if node is None or node.state not in LIVE_STATES:
            return None
        workflow = node.workflow
        if node.started_at is None:
            workflow.graph.started(node, now)
        _, node.prompt_tokens, node.cached_tokens, node.output_tokens, _ = event[:5]
        self.tables.touch(workflow, now)
        workflow.live_calls -= 1
        ready = self._finish(node, now)
        self.forecasts.learn(node)
        self._settle(workflow, now)
        return Change(workflow, node, ready)

    def call_failed(self, call_id: str, now: float, reason: str = "failed") -> Change | None:
        """The call is over without an answer. The node may be tried once more, by the gateway where it runs the
        workflow, else by the client; `node_failed` says that it will not be."""
        return self._stop(call_id, now, "failed", reason)

    def client_gone(self, call_id: str, now: float) -> Change | None:
        """The client left before its answer was complete."""
        return self._stop(call_id, now, "cancelled", "the client left")

    def placed(
        self,
        call_id: str,
        now: float,
        *,
        turn_of: str | None = None,
        turn_confidence: float = 0.0,
        data_from: Iterable[tuple[str, float]] = (),
        fingerprint: str | None = None,
        prefix: tuple[int, ...] = (),
    ) -> Workflow | None:
        """What the call's content says: whose next turn it is, whose output it holds, with which text it begins.

        Adds `inferred` edges. Workflows of unnamed calls that turn out to be one become one: the oldest, whose id
        stays. Never across keys, and never a change to what a client said. Returns the call's workflow.
        """
        node = self.tables.by_call.get(call_id)
        if node is None:
            return None
        found = [] if turn_of is None else [(turn_of, turn_confidence)]
        found.extend(data_from)
        place(self.tables, node, found, fingerprint, now)
        if prefix and not node.prefix and not node.over:
            node.prefix = prefix
            self.tables.prefixes.add(node)
        if fingerprint is not None and not node.over:
            self._predict(node)  # the template may be another one now
        return node.workflow

    def tell_on(self, now: float) -> tuple[Node, ...]:
        """Some more of the nodes that wait for a finished one learn of it; returns those that are ready now."""
        workflow = next(iter(self.untold))
        ready = workflow.graph.tell_on()
        if not workflow.graph.untold:
            del self.untold[workflow]
        self.become_ready(ready, now)
        return tuple(ready)

    # --- the end of workflows ---

    def close(self, key: str, workflow_id: str, now: float) -> Workflow | None:
        """No more calls will come: it closes as soon as those that are live are over."""
        workflow = self.tables.live_named((key, workflow_id))
        if workflow is not None:
            workflow.closing = True
            self._settle(workflow, now)
        return workflow

    def cancel(self, key: str, workflow_id: str, now: float) -> tuple[Workflow, list[str]] | None:
        """End it now. Returns the ids of the calls that are live, for the caller to abort."""
        workflow = self.tables.live_named((key, workflow_id))
        if workflow is None:
            return None
        live = [node.call_id for node in workflow.graph.nodes.values() if node.state in LIVE_STATES and node.call_id]
        self.tables.close(workflow, "cancelled", now)
        return workflow, live

    def expire(self, now: float) -> list[Workflow]:
        """Close workflows of which nothing was heard for too long, forget closed ones; returns those closed now."""
        return self.tables.expire(now)

    def next_expiry(self) -> float | None:
        """When `expire` may have something to do, at the earliest; None = nothing is known."""
        return self.tables.next_expiry()

    # --- questions ---

    def workflow(self, key: str, workflow_id: str) -> Workflow | None:
        """A workflow of this key, live or closed."""
        return self.tables.find((key, workflow_id))

    def objective(self, node: Node) -> Criterion:
        """Latency or throughput: as the client said, else deduced from the graph."""
        return objective(node.workflow, node)

    def task_group(self, consumer: Node) -> TaskGroup:
        """The nodes that run side by side to feed this one."""
        return task_group(consumer.workflow, consumer)

    def task_groups(self, node: Node) -> list[TaskGroup]:
        """The groups of two or more that the node is a member of."""
        return task_groups(node.workflow, node)

    def prefix_company(self, node: Node) -> tuple[int, Iterable[Node]]:
        """Unfinished nodes of the same key that share the longest prefix with this one, itself among them, and which of
        its prefix hashes that is; (-1, ()) if there are none."""
        return self.tables.prefixes.company(node)

    def validate(self, touched_since: float = float("-inf")) -> None:
        """As `WorkflowTables.validate`."""
        self.tables.validate(touched_since)

    # --- shared steps ---

    def _room_for(self, workflow: Workflow, event: CallArrived, now: float) -> bool:
        known = workflow.graph.nodes.get(event.node) if event.node is not None else None
        if known is not None and not known.tool and known.state in BINDABLE_STATES:
            return True
        if len(workflow.graph.nodes) >= self.limits.nodes_per_workflow and not self.tables.forget_oldest(workflow):
            return False
        if self.tables.node_count < self.limits.nodes and self.tables.edge_count < self.limits.edges:
            return True
        self.tables.touch(workflow, now)  # not this one
        return self.tables.has_room(workflow.key, workflow.origin, 1, 0, 0, now) and workflow.closed_at is None

    def _predict(self, node: Node) -> None:
        """The node's duration, and what its workflow's template says comes behind it."""
        workflow = node.workflow
        if workflow.origin != "declared" and not workflow.closing:
            template = self.templates.of(workflow)
            if template is not None:
                calls, _, seconds = template.remainder(node.level)
                workflow.forecast_calls = calls
                node.remainder_seconds = seconds.median
                node.remainder_variance = (seconds.upper - seconds.median) ** 2
        workflow.graph.predicted(node, *self.forecasts.predict(node))

    def become_ready(self, nodes: Iterable[Node], now: float) -> None:
        """All that these wait for is there."""
        pauses: dict[str, float] = {}
        for node in nodes:
            pause = pauses.get(node.pattern)
            if pause is None:
                pause = 0.0 if node.workflow.run_here else self.forecasts.pause(node).median
                pauses[node.pattern] = pause
            node.workflow.graph.becomes_ready(node, now, pause)

    def _finish(self, node: Node, now: float) -> tuple[Node, ...]:
        workflow = node.workflow
        ready = workflow.graph.finished(node, now)
        if workflow.graph.untold:
            self.untold[workflow] = None
        self.become_ready(ready, now)
        if node.prefix:
            self.tables.prefixes.remove(node)
        if node.tool:
            self.forecasts.learn_pause(node, node.lasted_seconds)
        workflow.last_finished = node
        if not workflow.graph.is_followed(node):
            workflow.loose_ends[node] = None
        return tuple(ready)

    def _tools_are_done(self, node: Node, now: float) -> None:
        """A call came that waits for tools: the client must have run them."""
        for tool in tools_before(node):
            if tool.state == "acting":
                self._finish(tool, now)

    def _stop(self, call_id: str, now: float, state: NodeState, error: str) -> Change | None:
        node = self.tables.by_call.get(call_id)
        if node is None or node.state not in LIVE_STATES:
            return None
        node.workflow.live_calls -= 1
        return self._stopped(node, now, state, error)

    def _stopped(self, node: Node, now: float, state: NodeState, error: str, *, last: bool = False) -> Change:
        workflow = node.workflow
        self.tables.touch(workflow, now)
        stopped = []
        if not node.over:
            workflow.graph.stopped(node, now, state, error)
            stopped.append(node)
        skipped = workflow.graph.skip_behind(node, now) if last else []
        for over in (*stopped, *skipped):
            if over.prefix:
                self.tables.prefixes.remove(over)
        self._settle(workflow, now)
        return Change(workflow, node, skipped=tuple(skipped))

    def _settle(self, workflow: Workflow, now: float) -> None:
        """After something ended: is the workflow over, or is it the client's turn?

        One that runs here is over when whoever runs it says so: it may try a node again, and it may add nodes.
        """
        if workflow.live_calls:
            return
        graph = workflow.graph
        if workflow.closing:
            outcome: Outcome = "closed"
            if workflow.run_here and not graph.unfinished:
                outcome = "failed" if graph.stopped_count else "complete"
            self.tables.close(workflow, outcome, now)
        elif workflow.origin == "declared" and not workflow.run_here and not (graph.unfinished or graph.stopped_count):
            self.tables.close(workflow, "complete", now)
        elif workflow.acting_since is None:
            workflow.acting_since = now
            workflow.return_forecast = self.templates.pause(workflow)


__all__ = ["Change", "Forecast", "WorkflowBook"]
