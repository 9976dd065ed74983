"""Declared workflows: what is refused and how, a node's life, slack by hand, what belongs to a group."""

from __future__ import annotations

import pytest

from scheduler.events import CallArrived, CallFinished
from scheduler.workflow import Change, GraphFault, Node, NodeSpec, Workflow, WorkflowBook, WorkflowLimits, WorkflowSpec
from scheduler.workflow.durations import SecondsForecast

MAP_REDUCE = (NodeSpec("a", (), (), 10), NodeSpec("b", (), (), 4), NodeSpec("sum", (), ("a", "b"), 5))


class TokenSeconds:
    """A token lasts a second, exactly."""

    def forecast(
        self, model: str | None, uncached_tokens: float, output_tokens: float, output_tokens_upper: float, *_: float
    ) -> SecondsForecast:
        return SecondsForecast(output_tokens, 0.0)

    def observe(self, model: str | None, uncached_tokens: float, output_tokens: float, seconds: float) -> None:
        """Nothing to learn."""


class Client:
    """Makes the calls of workflow `wf` of `key`."""

    def __init__(self, *nodes: NodeSpec, limits: WorkflowLimits | None = None, **promise: object) -> None:
        self.book = WorkflowBook(limits, TokenSeconds())
        spec = WorkflowSpec("key", "wf", nodes=nodes, **promise)  # type: ignore[arg-type]
        self.workflow = self.book.declare(spec, 0.0)
        self.book.validate()

    def node(self, name: str) -> Node:
        return self.workflow.graph.nodes[name]

    def states(self) -> dict[str, str]:
        return {name: node.state for name, node in self.workflow.graph.nodes.items()}

    def arrive(self, name: str | None, now: float, call: str | None = None) -> Node:
        node = self.book.call_arrived(CallArrived(call or f"c-{name}", "key", None, "wf", 9, node=name), now)
        assert node is not None
        self.book.validate()
        return node

    def start(self, name: str, now: float) -> None:
        self.arrive(name, now)
        assert self.book.call_started(f"c-{name}", now) is not None
        self.book.validate()

    def finish(self, name: str, now: float) -> Change:
        change = self.book.call_finished(CallFinished(f"c-{name}", 9, 0, 9), now)
        assert change is not None
        self.book.validate()
        return change

    def fail(self, name: str, now: float) -> Change:
        change = self.book.call_failed(f"c-{name}", now, "reset")
        assert change is not None
        self.book.validate()
        return change


# --- refusals ---


@pytest.mark.parametrize(
    ("nodes", "outputs", "status", "reason", "param", "shown"),
    [
        ((), (), 400, "no_nodes", "nodes", "one node"),
        ((NodeSpec("a"), NodeSpec("a")), (), 400, "duplicate_node", "nodes[1].id", "'a'"),
        ((NodeSpec("a", ("b",)),), (), 400, "unknown_node", "nodes[0].after[0]", "'b'"),
        ((NodeSpec("a"), NodeSpec("c", (), ("a", "b"))), (), 400, "unknown_node", "nodes[1].data_from[1]", "'b'"),
        ((NodeSpec("a", ("a",)),), (), 400, "self_edge", "nodes[0].after[0]", "'a'"),
        ((NodeSpec("a"),), ("a", "z"), 400, "unknown_node", "outputs[1]", "'z'"),
        ((NodeSpec("a", ("b",)), NodeSpec("b", ("a",))), (), 400, "cycle", "nodes[0].after", "'a' → 'b' → 'a'"),
        ((NodeSpec("x" * 9999, ("b",)),), (), 400, "unknown_node", "nodes[0].after[0]", "x…'"),
        (tuple(NodeSpec(str(i)) for i in range(5)), (), 413, "too_many_nodes", "nodes", "5 nodes; at most 4"),
        (
            tuple(NodeSpec(str(i), tuple(str(j) for j in range(i))) for i in range(4)),
            (), 413, "too_many_edges", "nodes", "more than 5",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    nodes: tuple[NodeSpec, ...], outputs: tuple[str, ...], status: int, reason: str, param: str, shown: str
) -> None:
    book = WorkflowBook(WorkflowLimits(nodes_per_workflow=4, edges_per_workflow=5))
    with pytest.raises(GraphFault) as refused:
        book.declare(WorkflowSpec("key", "wf", nodes=nodes, outputs=outputs), 0.0)
    fault = refused.value
    assert (fault.status, fault.reason, fault.param) == (status, reason, param)
    assert shown in fault.message and len(fault.message) < 1000
    assert book.workflow("key", "wf") is None and book.tables.node_count == 0
    book.validate()


def test_a_long_cycle_is_shown_in_part() -> None:
    nodes = tuple(NodeSpec(f"n{i}", (f"n{(i - 1) % 5000}",)) for i in range(5000))
    with pytest.raises(GraphFault, match=r"'n\d+' → … \(5000 nodes in all\)") as refused:
        WorkflowBook().declare(WorkflowSpec("key", "wf", nodes=nodes), 0.0)
    assert len(refused.value.message) < 300


def test_an_id_is_used_once_at_a_time_and_by_each_key_apart() -> None:
    client = Client(NodeSpec("a"))
    spec = WorkflowSpec("key", "wf", nodes=(NodeSpec("a"),))
    with pytest.raises(GraphFault) as refused:
        client.book.declare(spec, 0.0)
    assert refused.value.status == 409
    other = client.book.declare(spec._replace(key="other"), 0.0)
    assert other is not client.workflow
    client.start("a", 1.0)
    client.finish("a", 2.0)
    again = client.book.declare(spec, 3.0)
    assert client.book.workflow("key", "wf") is again
    client.book.validate()


def test_a_full_book_refuses_and_says_so() -> None:
    book = WorkflowBook(WorkflowLimits(nodes=2))
    book.declare(WorkflowSpec("key", "one", nodes=(NodeSpec("a"), NodeSpec("b"))), 0.0)
    assert book.call_arrived(CallArrived("c", "key", None, "one", 9, node="a"), 0.0) is not None
    with pytest.raises(GraphFault) as refused:
        book.declare(WorkflowSpec("key", "two", nodes=(NodeSpec("a"),)), 1.0)
    assert (refused.value.status, refused.value.reason) == (503, "workflows_full")
    book.client_gone("c", 2.0)
    book.declare(WorkflowSpec("key", "two", nodes=(NodeSpec("a"),)), 3.0)  # the silent one went
    assert book.workflow("key", "one") is None
    book.validate()


# --- a node's life ---


def test_map_reduce_from_end_to_end() -> None:
    client = Client(*MAP_REDUCE)
    assert client.states() == {"a": "ready", "b": "ready", "sum": "planned"}
    client.start("a", 1.0)
    assert client.arrive("b", 1.0).state == "queued"
    assert client.book.call_started("c-b", 1.5) is client.node("b")
    assert client.finish("b", 3.0).ready == ()
    assert client.finish("a", 11.0).ready == (client.node("sum"),)
    client.start("sum", 12.0)
    change = client.finish("sum", 17.0)
    assert change.closed and client.workflow.outcome == "complete"
    assert client.book.workflow("key", "wf") is client.workflow, "it can still be read"
    assert (client.node("sum").prompt_tokens, client.node("sum").output_tokens) == (9, 9)


def test_where_the_gateway_runs_it_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    nodes = (*MAP_REDUCE, NodeSpec("after", ("sum",)), NodeSpec("beside", ("b",)))
    client = Client(*nodes, run_here=True)
    client.start("a", 0.0)
    client.start("b", 0.0)
    assert client.fail("a", 1.0).skipped == (), "it may be tried again"
    change = client.book.node_failed("key", "wf", "a", 1.0, "reset")
    assert change is not None and {node.name for node in change.skipped} == {"sum", "after"}
    assert client.node("sum").error == "a did not finish"
    assert client.finish("b", 2.0).ready == (client.node("beside"),)
    client.start("beside", 2.0)
    assert not client.finish("beside", 3.0).closed, "it may grow"
    client.book.close("key", "wf", 3.0)
    assert client.workflow.outcome == "failed"
    assert client.states() == dict.fromkeys(("sum", "after"), "skipped") | {"a": "failed", "b": "finished"} | {
        "beside": "finished"
    }


def test_where_the_client_runs_it_a_failed_node_can_be_sent_again() -> None:
    client = Client(*MAP_REDUCE)
    client.start("a", 0.0)
    assert client.fail("a", 1.0).skipped == ()
    assert client.workflow.closed_at is None
    node = client.arrive("a", 2.0, "again")
    assert (node.name, node.attempts, node.error, node.state) == ("a", 2, None, "queued")
    assert client.book.call_finished(CallFinished("c-a", 1, 1, 1), 3.0) is None, "the first attempt is long over"
    assert client.book.call_finished(CallFinished("again", 1, 1, 1), 3.0) is not None
    assert client.arrive("a", 4.0, "once more").name == "a#2", "it had finished: that is another call"


def test_a_retry_of_the_gateways_own_keeps_the_node() -> None:
    client = Client(NodeSpec("a", expected_output_tokens=10))
    client.start("a", 0.0)
    assert client.workflow.projected_end(1.0) == 10.0
    assert client.book.retried("c-a", 4.0) is client.node("a")
    client.book.validate()
    assert client.workflow.projected_end(5.0) == 15.0
    assert client.book.call_started("c-a", 6.0) is client.node("a")
    assert client.workflow.projected_end(6.0) == 16.0
    assert client.node("a").attempts == 2


def test_a_client_that_leaves_cancels_its_node() -> None:
    client = Client(*MAP_REDUCE, run_here=True)
    client.start("a", 0.0)
    change = client.book.client_gone("c-a", 1.0)
    assert change is not None and change.skipped == ()
    assert client.node("a").state == "cancelled"
    change = client.book.node_failed("key", "wf", "a", 2.0, "the client left")
    assert change is not None and [node.name for node in change.skipped] == ["sum"]
    assert client.node("a").state == "cancelled", "that is why it has no result"


def test_cancelling_names_the_live_calls() -> None:
    client = Client(*MAP_REDUCE)
    client.start("a", 0.0)
    client.arrive("b", 0.0)
    cancelled = client.book.cancel("key", "wf", 1.0)
    assert cancelled == (client.workflow, ["c-a", "c-b"])
    assert set(client.states().values()) == {"cancelled"}
    assert client.book.call_finished(CallFinished("c-a", 1, 1, 1), 2.0) is None
    assert client.book.cancel("key", "wf", 3.0) is None
    assert client.book.cancel("other", "wf", 3.0) is None
    client.book.validate()


def test_an_unnamed_call_is_the_only_node_whose_time_has_come() -> None:
    client = Client(NodeSpec("one"), NodeSpec("two", ("one",)))
    assert client.arrive(None, 0.0, "c-one") is client.node("one")
    client.finish("one", 1.0)
    assert client.arrive(None, 1.0, "c-two") is client.node("two")
    client = Client(NodeSpec("a"), NodeSpec("b"))
    assert client.arrive(None, 0.0).name == "call-1", "it could be either"


def test_tools_act_between_calls() -> None:
    nodes = (NodeSpec("ask"), NodeSpec("look", ("ask",), tool=True, expected_seconds=3.0), NodeSpec("say", ("look",)))
    client = Client(*nodes)
    client.start("ask", 0.0)
    assert client.finish("ask", 2.0).ready == (client.node("look"),)
    assert client.states() == {"ask": "finished", "look": "acting", "say": "planned"}
    assert client.workflow.projected_end(2.0) == pytest.approx(5.0 + client.node("say").seconds)
    assert client.book.tool_finished("other", "wf", "look", 4.0) is None
    assert client.book.tool_finished("key", "wf", "say", 4.0) is None
    change = client.book.tool_finished("key", "wf", "look", 4.0)
    assert change is not None and change.ready == (client.node("say"),)
    client.book.validate()


def test_a_call_that_waits_for_tools_shows_that_they_are_done() -> None:
    nodes = (
        NodeSpec("ask"), NodeSpec("first", ("ask",), tool=True), NodeSpec("second", ("first",), tool=True),
        NodeSpec("say", ("second",)),
    )  # fmt: skip
    client = Client(*nodes)
    client.start("ask", 0.0)
    client.finish("ask", 2.0)
    client.arrive("say", 7.0)
    assert client.states() == {"ask": "finished", "first": "finished", "second": "finished", "say": "queued"}


# --- slack, by hand: a lasts 10 s, b 4 s, then sum 5 s ---


def test_free_slack_is_what_the_critical_path_leaves() -> None:
    client = Client(*MAP_REDUCE, workflow_class="interactive")
    workflow, a, b = client.workflow, client.node("a"), client.node("b")
    assert workflow.projected_end(0.0) == 15.0
    assert [node.name for node in workflow.critical_path(0.0)] == ["a", "sum"]
    assert workflow.free_slack_seconds(a, 0.0) == 0.0
    assert workflow.free_slack_seconds(b, 0.0) == 6.0
    client.start("a", 0.0)
    assert workflow.free_slack_seconds(b, 4.0) == 2.0, "up to the join's latest start"
    assert workflow.free_slack_seconds(b, 9.0) == 0.0
    assert workflow.projected_end(9.0) == 18.0, "b has not started: it decides now"
    assert [node.name for node in workflow.critical_path(9.0)] == ["b", "sum"]
    assert workflow.slack_seconds(b, 0.0) == 6.0, "interactive: nothing beyond free slack"


def test_a_call_that_takes_longer_than_predicted_moves_the_end() -> None:
    client = Client(*MAP_REDUCE)
    client.start("a", 0.0)
    client.start("b", 0.0)
    assert client.workflow.projected_end(8.0) == 15.0
    assert client.workflow.projected_end(12.0) == 17.0, "a can end at once at best, then comes sum"


@pytest.mark.parametrize(
    ("workflow_class", "deadline", "latest"),
    [
        ("standard", None, 22.5 - 15.0),
        ("batch", None, 86_400.0 - 15.0),
        ("interactive", None, 0.0),
        ("no such class", None, 22.5 - 15.0),
        (None, None, 22.5 - 15.0),
        ("standard", 100.0, 85.0),
        ("batch", 12.0, -3.0),
    ],
)
def test_latest_start_by_class_and_deadline(workflow_class: str | None, deadline: float | None, latest: float) -> None:
    client = Client(*MAP_REDUCE, workflow_class=workflow_class, deadline_seconds=deadline)
    assert client.workflow.latest_start(client.node("a"), 0.0) == pytest.approx(latest)
    assert client.workflow.slack_seconds(client.node("a"), 3.0) == pytest.approx(latest - 3.0 * (latest != 0.0))


def test_being_held_back_is_no_part_of_the_time_alone() -> None:
    client = Client(*MAP_REDUCE)
    client.arrive("a", 0.0)
    client.arrive("b", 0.0)
    client.book.call_started("c-a", 7.0)
    assert client.workflow.isolated_seconds() == 15.0
    client.finish("a", 15.0)  # 8 s, not 10
    assert client.workflow.isolated_seconds() == 13.0
    client = Client(*MAP_REDUCE)
    client.start("a", 4.0)  # the client took 4 s to send it
    assert client.workflow.isolated_seconds() == 19.0


# --- objectives and groups ---


def objectives(client: Client) -> dict[str, str]:
    return {name: client.book.objective(node) for name, node in client.workflow.graph.nodes.items()}


def test_what_feeds_a_join_side_by_side_is_throughput_oriented() -> None:
    client = Client(NodeSpec("plan"), *(n._replace(after=("plan",)) for n in MAP_REDUCE[:2]), MAP_REDUCE[2])
    assert objectives(client) == {"plan": "latency", "a": "throughput", "b": "throughput", "sum": "latency"}
    (group,) = client.book.task_groups(client.node("a"))
    assert group.consumer is client.node("sum") and list(group.members) == [client.node("a"), client.node("b")]
    assert client.book.task_groups(client.node("plan")) == []


def test_a_chain_is_latency_oriented_and_a_branch_inherits_from_its_join() -> None:
    assert set(objectives(Client(NodeSpec("a"), NodeSpec("b", ("a",)), NodeSpec("c", ("b",)))).values()) == {"latency"}
    both = Client(NodeSpec("a"), NodeSpec("b", ("a",)), NodeSpec("c", ("a", "b")))
    assert set(objectives(both).values()) == {"latency"}, "a and b do not run side by side"
    assert list(both.book.task_group(both.node("c")).members) == [both.node("b")]
    # As in multi-agent coding: each file's review reads what the architect and the programmer wrote.
    nodes = [NodeSpec("architect")]
    for file in "12":
        nodes.append(NodeSpec(f"program-{file}", (), ("architect",)))
        nodes.append(NodeSpec(f"review-{file}", (), ("architect", f"program-{file}")))
        nodes.append(NodeSpec(f"revise-{file}", (), ("architect", f"program-{file}", f"review-{file}")))
    nodes.append(NodeSpec("merge", (), ("revise-1", "revise-2")))
    found = objectives(Client(*nodes))
    assert {name for name, kind in found.items() if kind == "latency"} == {"architect", "merge"}


def test_a_fan_out_inside_a_branch_inherits_from_where_it_meets() -> None:
    nodes = [NodeSpec("end", ("x-join", "y-join"))]
    for branch in "xy":
        nodes.append(NodeSpec(branch))
        nodes += [NodeSpec(f"{branch}{i}", (branch,)) for i in range(2)]
        nodes.append(NodeSpec(f"{branch}-join", (f"{branch}0", f"{branch}1")))
    found = objectives(Client(*nodes))
    assert found.pop("end") == "latency"
    assert set(found.values()) == {"throughput"}


def test_what_is_said_overrides_what_is_deduced() -> None:
    nodes = (MAP_REDUCE[0]._replace(criterion="latency"), MAP_REDUCE[1], MAP_REDUCE[2]._replace(criterion="throughput"))
    assert objectives(Client(*nodes)) == {"a": "latency", "b": "throughput", "sum": "throughput"}
    client = Client(*MAP_REDUCE, outputs=("b",))
    assert objectives(client)["b"] == "latency", "the user waits for it"


def test_deducing_ends_in_graphs_of_any_size() -> None:
    limits = WorkflowLimits(nodes=60_000, nodes_per_workflow=60_000)
    chain = Client(*(NodeSpec(str(i), (str(i - 1),) if i else ()) for i in range(9000)), limits=limits)
    assert chain.book.objective(chain.node("0")) == "latency"
    maps = [NodeSpec(f"m{i}", ("root",)) for i in range(9000)]
    wide = Client(NodeSpec("root"), *maps, NodeSpec("sum", tuple(n.id for n in maps)), limits=limits)
    assert objectives(wide) == {"root": "latency", "sum": "latency"} | {n.id: "throughput" for n in maps}


# --- prefixes ---


def test_nodes_that_begin_alike_find_each_other() -> None:
    client = Client(NodeSpec("a", prefix=(1, 2, 3)), NodeSpec("b", prefix=(1, 2, 4)), NodeSpec("c", prefix=(1, 9)))
    book = client.book
    other = book.declare(WorkflowSpec("key", "two", nodes=(NodeSpec("d", prefix=(1, 2, 3)),)), 0.0)
    foreign = book.declare(WorkflowSpec("other", "wf", nodes=(NodeSpec("e", prefix=(1, 2, 3)),)), 0.0)
    a, b, c, d = client.node("a"), client.node("b"), client.node("c"), other.graph.nodes["d"]
    assert [(place, list(company)) for place, company in map(book.prefix_company, (a, b, c, d))] == [
        (2, [a, d]), (1, [a, b, d]), (0, [a, b, c, d]), (2, [a, d])
    ]  # fmt: skip
    assert book.prefix_company(foreign.graph.nodes["e"]) == (-1, ())
    client.start("a", 0.0)
    client.finish("a", 1.0)
    assert [(place, list(company)) for place, company in map(book.prefix_company, (b, d))] == [(1, [b, d])] * 2


def test_the_table_of_prefixes_is_bounded() -> None:
    nodes = tuple(NodeSpec(str(i), prefix=(i, i + 100)) for i in range(20))
    client = Client(*nodes, limits=WorkflowLimits(prefix_hashes=10))
    assert client.book.tables.prefixes.hashes == 10
    long = Client(NodeSpec("a", prefix=tuple(range(99))), NodeSpec("b", prefix=(1, 1, 1)))
    assert [len(long.node(name).prefix) for name in "ab"] == [16, 1]


def test_a_workflow_stays_readable_for_people() -> None:
    workflow: Workflow = Client(NodeSpec("a")).workflow
    assert repr(workflow) == "<workflow wf of key: 1 nodes>"
    assert repr(workflow.graph.nodes["a"]) == "<a ready>"
