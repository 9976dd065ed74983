"""What does somebody say who declares a workflow, how much of it is taken, and how is it refused?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

EdgeKind = Literal["declared", "data", "inferred"]
"""`declared`: the client said so. `data`: the consumer's prompt holds the producer's output. `inferred`: a guess."""

Criterion = Literal["latency", "throughput"]
"""What matters of a call: that it ends soon, or that many end in little time (and energy)."""

CLASSES = ("interactive", "standard", "batch")
"""What a workflow without a deadline may take: no more than it needs, a multiple of it, or hours."""

PREFIX_BYTES = (2048, 4096, 8192, 16_384, 32_768, 65_536)
"""How much of a prompt's leading text each hash of a `prefix` stands for."""


class NodeSpec(NamedTuple):
    """One node of a declared workflow: a model call, or a tool that the client runs (`tool`). None = not known.

    `after`: nodes that must have finished. `data_from`: those whose output stands in the prompt (they need not be in
    `after` as well). `expected_seconds`: how long a tool takes. `prefix`: hashes of the leading text, its first
    PREFIX_BYTES[i] each; two nodes with an equal hash begin with the same text up to there.
    """

    id: str
    after: tuple[str, ...] = ()
    data_from: tuple[str, ...] = ()
    expected_output_tokens: int | None = None
    max_output_tokens: int | None = None
    prompt_tokens_estimate: int | None = None
    model: str | None = None
    tool: bool = False
    expected_seconds: float | None = None
    prefix: tuple[int, ...] = ()
    criterion: Criterion | None = None
    """An explicit objective, which is then not deduced from the graph."""


class WorkflowSpec(NamedTuple):
    """A declared workflow. `deadline_seconds` counts from its arrival; `outputs`: the nodes whose output the user waits
    for, empty = those that nothing follows; `run_here`: the gateway runs the nodes, else the client makes the calls."""

    key: str
    workflow_id: str
    name: str | None = None
    workflow_class: str | None = None
    deadline_seconds: float | None = None
    energy_budget_joules: float | None = None
    nodes: tuple[NodeSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    run_here: bool = False


@dataclass(frozen=True, slots=True)
class WorkflowLimits:
    """Every bound of the table of workflows, and what classes of workflows mean."""

    workflows: int = 10_000
    """Live at once."""
    nodes_per_workflow: int = 20_000
    edges_per_workflow: int = 100_000
    nodes: int = 100_000
    """Of all workflows together, those kept for reading included."""
    edges: int = 500_000
    idle_seconds: float = 900.0
    """A workflow of which nothing is heard for so long closes."""
    closed_workflows: int = 1_000
    """Kept for reading."""
    closed_seconds: float = 3_600.0
    pending_names: int = 64
    """Names in `after` that no call of the workflow has had so far."""
    history_places: int = 4_096
    """Places (workflow name and node name) whose lengths and pauses are remembered."""
    history_models: int = 1_024
    templates: int = 1_024
    prefix_hashes: int = 200_000
    default_class: str = "standard"
    """Of workflows that say none, or a word that is none of `interactive`, `standard` and `batch`."""
    standard_factor: float = 1.5
    """A workflow of class `standard` may take so many times as long as it would alone."""
    batch_seconds: float = 86_400.0
    """A workflow of class `batch` without a deadline may take so long."""


class GraphFault(Exception):
    """A workflow is refused: HTTP `status`, a word for machines, a text that names the offenders, and the field."""

    def __init__(self, status: int, reason: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
