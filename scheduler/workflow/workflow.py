"""One workflow: its graph, whose it is, what was promised, and how long each of its nodes can wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scheduler.workflow.forecasts import Forecast
from scheduler.workflow.graph import WorkflowGraph
from scheduler.workflow.spec import CLASSES

if TYPE_CHECKING:
    from scheduler.workflow.node import Node
    from scheduler.workflow.spec import WorkflowLimits

Origin = Literal["declared", "hinted", "content"]
"""How it became known: declared beforehand, by ids on its calls, or from its calls' content alone."""
Outcome = Literal["complete", "failed", "closed", "cancelled", "idle", "displaced", "merged"]
"""Why it is closed. `closed`: it was said so, `final` included; `idle`: nothing was heard; `displaced`: no room."""


class Workflow:
    """A workflow as long as it is known. Times in seconds of the events' clock."""

    __slots__ = (
        "acting_since", "arrived_at", "calls_named", "closed_at", "closing", "deadline_at", "edges_max",
        "energy_budget_joules", "fingerprint", "forecast_calls", "graph", "id", "key", "last_event_at",
        "last_finished", "latest", "limits", "live_calls", "loose_ends", "name", "number", "order_at", "origin",
        "outcome", "outputs", "pending", "pending_count", "return_forecast", "run_here", "skipped_edges",
        "template_key", "too_short_by_seconds", "workflow_class",
    )  # fmt: skip

    def __init__(self, key: str, workflow_id: str, origin: Origin, now: float, limits: WorkflowLimits) -> None:
        self.key = key
        self.id = workflow_id
        self.origin: Origin = origin
        self.limits = limits
        self.template_key = (key, "")
        """Which runs it is like: those of its name, else of its fingerprint."""
        self.name: str | None = None
        self.fingerprint: str | None = None
        """Stands for the name where there is none: equal for runs of the same agent."""
        self.workflow_class: str | None = None
        self.deadline_at: float | None = None
        self.too_short_by_seconds: float | None = None
        """Its deadline was given so much less time than it would take alone, as it looked then; None: it was not."""
        self.energy_budget_joules: float | None = None
        self.run_here = False
        self.graph = WorkflowGraph()
        self.number = 0
        """Order of arrival in the book."""
        self.edges_max = limits.edges_per_workflow
        """Edges it may have at present, those that wait for a name included."""
        self.outputs: frozenset[str] = frozenset()
        """Names of the nodes the user waits for; empty = those that nothing follows."""
        self.arrived_at = self.last_event_at = now
        self.order_at = now
        """When it was last put at the end of the book's line of workflows that may go idle."""
        self.live_calls = 0
        """Queued or running."""
        self.closing = False
        """No more calls will come; it closes when the live ones are over."""
        self.closed_at: float | None = None
        self.outcome: Outcome | None = None
        self.acting_since: float | None = None
        """Since when the client alone has been at work: no call is live."""
        self.return_forecast = Forecast(0.0, 0.0)
        """Seconds from `acting_since` to the next call."""
        self.last_finished: Node | None = None
        self.latest: dict[str, Node] = {}
        """The latest call of each name as the client gives it; "" for unnamed ones."""
        self.loose_ends: dict[Node, None] = {}
        """Calls that finished and that nothing follows so far."""
        self.pending: dict[str, list[Node]] = {}
        """By a name that no node has so far: the nodes that said they come after it."""
        self.pending_count = 0
        self.calls_named = 0
        """Names given to calls without one."""
        self.skipped_edges = 0
        """Edges that were said or found, and left out: they would have closed a cycle, or there was no room."""
        self.forecast_calls = Forecast(0.0, 0.0)
        """How many more calls its template expects behind the latest."""

    @property
    def edges_left(self) -> int:
        """So many more edges may come."""
        return self.edges_max - self.graph.edge_count - self.pending_count

    # --- what was promised ---

    @property
    def effective_class(self) -> str:
        """`interactive`, `standard` or `batch`."""
        given = self.workflow_class
        return given if given in CLASSES else self.limits.default_class

    def projected_end(self, now: float) -> float:
        """When the workflow ends as things look (median). While the client acts: by its return and the template."""
        end = self.graph.critical.projected_end(now)
        if end is not None:
            return end
        last = self.last_finished
        if self.closed_at is not None or self.acting_since is None or last is None:
            return self.closed_at or now
        remainder = last.remainder_seconds
        return max(self.acting_since + remainder, now + max(0.0, remainder - self.return_forecast.median))

    def isolated_seconds(self) -> float:
        """How long it would take alone at the present load, the client's own pauses included."""
        critical = self.graph.critical
        isolated = critical.isolated_seconds()
        if not critical.floors.keys and self.last_finished is not None and self.acting_since is not None:
            isolated += self.last_finished.remainder_seconds
        return isolated

    def end_allowed(self, now: float) -> float:
        """When the workflow must have ended: its deadline, else what its class means."""
        if self.deadline_at is not None:
            return self.deadline_at
        kind = self.effective_class
        if kind == "interactive":
            return self.projected_end(now)
        if kind == "batch":
            return self.arrived_at + self.limits.batch_seconds
        return self.arrived_at + self.limits.standard_factor * self.isolated_seconds()

    # --- how long a node can wait ---

    def latest_start(self, node: Node, now: float) -> float:
        """The latest time to start the node and end in time, even if what follows takes its upper quantile."""
        return self.end_allowed(now) - node.tail_upper_seconds

    def slack_seconds(self, node: Node, now: float) -> float:
        """How long the node can still wait for the workflow's own end to be kept; negative: it is late already."""
        return self.end_allowed(now) - node.tail_upper_seconds - now

    def free_slack_seconds(self, node: Node, now: float) -> float:
        """How long the node can wait without anyone noticing: the workflow ends no later than it would anyway.

        0 on the critical path; beside it, up to the latest start of the join that both lead to.
        """
        return max(0.0, self.projected_end(now) - node.tail_upper_seconds - now)

    def returns_at(self, now: float) -> Forecast | None:
        """When the client, which is acting, makes its next call; None while calls are live. Never before `now`."""
        if self.acting_since is None or self.closed_at is not None:
            return None
        median, upper = self.return_forecast
        return Forecast(max(now, self.acting_since + median), max(now, self.acting_since + upper))

    def critical_path(self, now: float) -> list[Node]:
        """The nodes that decide when it ends, in order, those that finished included."""
        return self.graph.critical.path(now)

    def known_as(self, name: str | None, fingerprint: str | None) -> None:
        """What it is called, which decides of which earlier runs it is one more."""
        self.name, self.fingerprint = name, fingerprint
        self.template_key = (self.key, f"print {fingerprint}" if name is None else f"name {name}")

    def __repr__(self) -> str:
        return f"<workflow {self.id} of {self.key}: {len(self.graph.nodes)} nodes>"

    def validate(self) -> None:
        """Every invariant of the workflow and its graph. AssertionError names what does not hold."""
        self.graph.validate()
        nodes = self.graph.nodes
        live = sum(node.state in {"queued", "running"} for node in nodes.values())
        assert self.live_calls == live, f"{self} counts {self.live_calls} live calls, there are {live}"
        assert (self.acting_since is None) or live == 0
        for node in nodes.values():
            assert node.workflow is self
        for name, waiting in self.pending.items():
            assert name not in nodes and waiting, f"{name} came and is still waited for"
        assert self.pending_count == sum(len(waiting) for waiting in self.pending.values())
        assert len(self.pending) <= self.limits.pending_names
        for node in self.loose_ends:
            assert node.state == "finished" and nodes.get(node.name) is node
            assert not self.graph.is_followed(node), f"{node} is followed"
        for node in self.latest.values():
            assert nodes.get(node.name) is node
        assert self.last_finished is None or nodes.get(self.last_finished.name) is self.last_finished
        assert len(nodes) <= self.limits.nodes_per_workflow
        assert self.graph.edge_count <= self.limits.edges_per_workflow
        if self.closed_at is not None:
            assert self.outcome is not None and not live
