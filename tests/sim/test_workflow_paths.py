"""Tails, ends and slack beside brute force: networkx's longest paths over random graphs, while their calls run."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import NamedTuple

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import GraphFault, Node, NodeSpec, Workflow, WorkflowBook, WorkflowSpec
from scheduler.workflow.durations import SecondsForecast
from scheduler.workflow.graph import WorkflowGraph
from scheduler.workflow.node import Edge
from scheduler.workflow.spec import WorkflowLimits


class GivenDurations:
    """Durations that a test chooses: the expected output tokens are the median, a tenth of it the spread."""

    def forecast(
        self,
        model: str | None,
        uncached_tokens: float,
        output_tokens: float,
        output_tokens_upper: float,
        context_tokens: float = 0.0,
    ) -> SecondsForecast:
        return SecondsForecast(output_tokens, output_tokens / 10.0)

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """It knows already."""


class Shape(NamedTuple):
    """Edges from lower to higher numbers, and each node's seconds."""

    edges: list[tuple[int, int]]
    seconds: list[int]


@st.composite
def shapes(draw: st.DrawFn, most: int = 12) -> Shape:
    count = draw(st.integers(1, most))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return Shape(edges, draw(st.lists(st.integers(0, 50), min_size=count, max_size=count)))


def declared(shape: Shape, rng: random.Random, **promise: object) -> tuple[WorkflowBook, Workflow]:
    """The shape as a workflow, its nodes in any order."""
    book = WorkflowBook(durations=GivenDurations())
    nodes = [
        NodeSpec(str(i), tuple(str(a) for a, b in shape.edges if b == i), expected_output_tokens=seconds)
        for i, seconds in enumerate(shape.seconds)
    ]
    rng.shuffle(nodes)
    spec = WorkflowSpec("key", "wf", nodes=tuple(nodes), **promise)  # type: ignore[arg-type]
    return book, book.declare(spec, 0.0)


def longest_from(workflow: Workflow, start: Node) -> float:
    """Brute force: the longest way from `start` over unfinished nodes, in seconds."""
    alive: nx.DiGraph[Node] = workflow.graph.dag.subgraph([n for n in workflow.graph.dag if not n.over])
    behind = alive.subgraph({start} | nx.descendants(alive, start))
    weighted: nx.DiGraph[Node] = nx.DiGraph()
    weighted.add_nodes_from(behind)
    weighted.add_weighted_edges_from((a, b, b.seconds) for a, b in behind.edges)
    return start.seconds + nx.dag_longest_path_length(weighted)


def check(workflow: Workflow, now: float) -> None:
    """All that is kept incrementally is what brute force says."""
    alive = [node for node in workflow.graph.nodes.values() if not node.over]
    for node in alive:
        longest = longest_from(workflow, node)
        assert node.tail_seconds == pytest.approx(longest)
        # The upper quantile: more than the median, less than if all spreads came on one way at once.
        assert longest - 1e-9 <= node.tail_upper_seconds <= longest * 1.1 + 1e-9
    ends = []
    for node in alive:
        if node.state == "running":
            assert node.started_at is not None
            ends.append(max(node.started_at + node.seconds, now) + longest_from(workflow, node) - node.seconds)
        elif node.state == "ready":  # the client's pause is still to come
            ends.append(max(node.start_at, now) + longest_from(workflow, node))
        elif node.state == "queued":
            ends.append(now + longest_from(workflow, node))
    if ends:
        assert workflow.projected_end(now) == pytest.approx(max(ends))
        path = workflow.critical_path(now)
        assert all(workflow.graph.edge(a, b) is not None for a, b in pairwise(path))
        rest = [node for node in path if not node.over]
        assert sum(node.seconds for node in rest) == pytest.approx(longest_from(workflow, rest[0]))
    for node in alive:
        free = workflow.free_slack_seconds(node, now)
        assert free == pytest.approx(max(0.0, workflow.projected_end(now) - node.tail_upper_seconds - now))


@settings(max_examples=150, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**32), early=st.booleans())
def test_a_graph_while_it_runs(shape: Shape, seed: int, early: bool) -> None:
    """Calls come when their time has come, or (`early`) whenever they like; they last as they like, and some fail."""
    rng = random.Random(seed)
    book, workflow = declared(shape, rng, deadline_seconds=1000.0)
    now, number = 0.0, 0
    running: list[str] = []
    check(workflow, now)
    for _ in range(4 * len(shape.seconds)):
        now += rng.choice((0.0, 1.0, 7.0))
        could = [n for n in workflow.graph.nodes.values() if n.state == "ready" or (early and n.state == "planned")]
        if could and (rng.random() < 0.5 or not running):
            node, number = rng.choice(could), number + 1
            event = CallArrived(f"c{number}", "key", None, "wf", 9, node=node.name)
            assert book.call_arrived(event, now) is node
            if rng.random() < 0.5:
                node.expected_output_tokens = rng.randrange(60)
            book.call_started(event.call_id, now)
            running.append(event.call_id)
        elif running:
            call = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.15:
                book.call_failed(call, now)
            else:
                book.call_finished(CallFinished(call, 9, 0, 9), now)
        book.validate()
        if workflow.closed_at is None:
            check(workflow, now)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 9), data=st.data())
def test_edges_in_any_order(count: int, data: st.DataObject) -> None:
    """Edges come one by one, against any order: those that close a cycle are refused, and only those."""
    workflow = Workflow("key", "wf", "hinted", 0.0, WorkflowLimits())
    nodes = [Node(workflow, str(i), "#") for i in range(count)]
    beside: nx.DiGraph[int] = nx.DiGraph()
    for number, node in enumerate(nodes):
        workflow.graph.add(node)
        workflow.graph.predicted(node, float(number + 1), 0.5)
        beside.add_node(number)
    ends = st.integers(0, count - 1)
    for before, after in data.draw(st.lists(st.tuples(ends, ends), max_size=40)):
        beside.add_edge(before, after)
        fits = nx.is_directed_acyclic_graph(beside)
        assert workflow.graph.connect(nodes[before], nodes[after], Edge("declared")) == fits
        if not fits:
            beside.remove_edge(before, after)
        assert {(int(a.name), int(b.name)) for a, b, _ in workflow.graph.edges()} == set(beside.edges)
        assert all(nodes[a].order < nodes[b].order for a, b in beside.edges)
        for node in nodes:
            assert node.tail_seconds == pytest.approx(longest_from(workflow, node))
    for before, after in data.draw(st.permutations(list(beside.edges))):
        workflow.graph.disconnect(nodes[before], nodes[after])
        for node in nodes:
            assert node.tail_seconds == pytest.approx(longest_from(workflow, node))


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 8), data=st.data())
def test_cycles_are_found_and_shown(count: int, data: st.DataObject) -> None:
    """A declaration is refused exactly if its graph has a cycle, and what is shown is one."""
    ends = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(ends, ends).filter(lambda edge: edge[0] != edge[1]), unique=True, max_size=20))
    nodes = tuple(NodeSpec(f"n{i}", tuple(f"n{a}" for a, b in edges if b == i)) for i in range(count))
    book = WorkflowBook()
    fault: GraphFault | None = None
    try:
        book.declare(WorkflowSpec("key", "wf", nodes=nodes), 0.0)
    except GraphFault as refused:
        fault = refused
    if fault is not None:
        assert (fault.status, fault.reason) == (400, "cycle")
        shown = [int(name.strip("' ").removeprefix("n")) for name in fault.message.partition(": ")[2].split(" → ")]
        assert shown[0] == shown[-1]
        assert all(pair in edges for pair in pairwise(shown))
        assert book.workflow("key", "wf") is None
    else:
        assert nx.is_directed_acyclic_graph(nx.DiGraph(edges))
    book.validate()


def test_brute_force_would_notice() -> None:
    """The comparison itself: a tail that is wrong is found by it, and by validate()."""
    book, workflow = declared(Shape([(0, 1)], [3, 4]), random.Random(0))
    workflow.graph.nodes["0"].tail_seconds = 6.0
    with pytest.raises(AssertionError):
        check(workflow, 0.0)
    with pytest.raises(AssertionError, match="out of date"):
        book.validate()
    assert isinstance(workflow.graph, WorkflowGraph)
