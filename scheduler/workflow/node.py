"""What is known of one node of a workflow: a model call, or a tool that the client runs between calls."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from scheduler.workflow.objective import TaskGroup
    from scheduler.workflow.spec import Criterion, EdgeKind
    from scheduler.workflow.workflow import Workflow

NodeState = Literal["planned", "ready", "queued", "running", "acting", "finished", "failed", "skipped", "cancelled"]
"""planned: waits for others. ready: it could run, its call has not come. queued: its call waits here. running: at an
engine. acting: a tool that the client runs. skipped: something it needs has failed. The last four are *over*."""

OVER_STATES = frozenset(("finished", "failed", "skipped", "cancelled"))
STARTED_STATES = frozenset(("running", "acting"))


class Edge(NamedTuple):
    """Why one node waits for another. `confidence` is 1 for what the client said."""

    kind: EdgeKind
    confidence: float = 1.0


class Node:
    """A node and all its numbers; times in seconds of the events' clock. Compared by identity.

    Tails: the longest predicted time from the node's start to the workflow's end, over what is unfinished.
    """

    __slots__ = (
        "attempts", "cached_tokens", "call_id", "criterion", "declared", "error", "expected_output_tokens",
        "expected_seconds", "finished_at", "group", "group_version", "head_seconds", "level", "max_output_tokens",
        "model", "name", "number", "objective", "objective_version", "order", "output_tokens",
        "output_tokens_forecast", "output_tokens_upper", "over", "pattern", "prefix", "prompt_tokens",
        "prompt_tokens_estimate", "queued_at", "ready_at", "remainder_seconds", "remainder_variance", "seconds",
        "start_at", "started_at", "state", "tail_mean", "tail_seconds", "tail_variance", "tool", "variance",
        "waiting_for", "workflow",
    )  # fmt: skip

    def __init__(self, workflow: Workflow, name: str, pattern: str) -> None:
        self.workflow = workflow
        self.name = name
        self.pattern = pattern
        """The name with its numbers blotted out: siblings share a history."""
        self.number = 0
        """Unique in its graph, in order of creation."""
        self.order = 0
        """A topological order of the graph."""
        self.level = 0
        """Nodes on the longest way to it when it was added."""
        self.state: NodeState = "planned"
        self.over = False
        self.tool = False
        self.declared = False
        self.call_id: str | None = None
        """Of its last attempt."""
        self.attempts = 0
        self.error: str | None = None
        self.criterion: Criterion | None = None
        self.prefix: tuple[int, ...] = ()
        self.model: str | None = None
        self.prompt_tokens_estimate: int | None = None
        self.max_output_tokens: int | None = None
        self.expected_output_tokens: int | None = None
        self.expected_seconds: float | None = None

        self.output_tokens_forecast = 0.0
        self.output_tokens_upper = 0.0
        self.seconds = 0.0
        """Predicted time from dispatch to finish: median."""
        self.variance = 0.0
        """Square of what lies between the median and the upper quantile."""
        self.tail_seconds = 0.0
        self.tail_mean = 0.0
        """Medians and variances along the way whose upper quantile is the longest; see `tail_upper_seconds`."""
        self.tail_variance = 0.0
        self.remainder_seconds = 0.0
        """What a template says comes behind a node that nothing follows yet."""
        self.remainder_variance = 0.0
        self.waiting_for = 0
        """Nodes before it that have not finished."""
        self.head_seconds = 0.0
        """How long after the workflow's arrival it could have started, had nothing been held back here."""
        self.start_at = 0.0
        """When it started, or is expected to; of use from `ready` on."""

        self.ready_at: float | None = None
        self.queued_at: float | None = None
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None
        self.objective: Criterion | None = None
        self.group: TaskGroup | None = None
        """Its producers, as `group_version` of the graph has them."""
        self.group_version = -1
        self.objective_version = -1
        """The structure of the graph for which `objective` was deduced."""

    @property
    def tail_upper_seconds(self) -> float:
        """The tail's upper quantile: spreads of different calls add up as independent ones do, not end to end."""
        return self.tail_mean + sqrt(self.tail_variance)

    @property
    def lasted_seconds(self) -> float:
        """From its start to its end; 0 for what has not had both."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return self.finished_at - self.started_at

    def __repr__(self) -> str:
        return f"<{self.name} {self.state}>"
