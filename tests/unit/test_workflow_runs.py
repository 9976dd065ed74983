"""Submitted workflows at work, without sockets: whose turn it is, what is kept for whom, what a stream tells."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.errors import RequestFault
from proxy.workflows.config import WorkflowsConfig
from proxy.workflows.nodes import Bounds
from proxy.workflows.run import TOLD_A_TURN, HeldBytes, NodeStatus, WorkflowRun
from proxy.workflows.stream import RunStream
from proxy.workflows.submission import parse
from proxy.workflows.table import RunTable
from proxy.workflows.turns import Turns

if TYPE_CHECKING:
    from proxy.own.request import OwnRequest

BOUNDS = Bounds(nodes=100, request_bytes=100_000, all_bytes=1_000_000)


def run_of(run_id: str, key: str = "k", held: HeldBytes | None = None, **node: Any) -> WorkflowRun:
    nodes = [{"id": "a", **(node or {"request": {"messages": []}})}]
    submission = parse({"nodes": nodes}, BOUNDS)
    return WorkflowRun(run_id, key, submission, 0.0, held or HeldBytes())


# --- turns ---


def test_keys_take_turns_and_within_a_key_its_runs() -> None:
    turns = Turns()
    for number in range(3):
        turns.add(run_of(f"a{number}", "alice"))
    turns.add(run_of("b0", "bob"))
    taken = [run.id for run in iter(lambda: turns.take(lambda _: True), None)]
    assert taken == ["a0", "b0", "a1", "a2"] and not turns


def test_a_key_that_may_not_start_anything_is_passed_over() -> None:
    turns = Turns()
    alice, bob, other = run_of("a", "alice"), run_of("b", "bob"), run_of("b2", "bob")
    for run in (alice, bob, other, bob):
        turns.add(run)  # twice is once
    assert turns.take(lambda key: key == "bob") is bob
    turns.drop(other)
    assert turns.take(lambda key: key == "bob") is None
    assert turns.take(lambda _: True) is alice and turns.take(lambda _: True) is None


# --- the table ---


def over(table: RunTable, run_id: str, key: str) -> None:
    run = run_of(run_id, key, table.held)
    table.add(run)
    run.cancel(1.0)
    table.ended(run)


def test_a_flood_of_one_key_forgets_its_own_results_first() -> None:
    table = RunTable(WorkflowsConfig(submitted=4))
    over(table, "b", "bob")
    for number in range(10):
        table.check_room("alice", f"a{number}")
        over(table, f"a{number}", "alice")
    assert table.get("bob", "b") is not None and table.get("alice", "a9") is not None
    assert table.get("alice", "a0") is None and len(table) < 4


def test_what_one_key_runs_keeps_no_other_out() -> None:
    table = RunTable(WorkflowsConfig(submitted=4))
    for number in range(2):
        table.check_room("alice", f"a{number}")
        table.add(run_of(f"a{number}", "alice", table.held))
    with pytest.raises(RequestFault, match=r"half of workflows\.submitted") as caught:
        table.check_room("alice", "a2")
    assert (caught.value.status, caught.value.reason) == (503, "workflows_full")
    assert caught.value.retry_after_seconds is not None
    table.check_room("bob", "b")
    one_for_all = RunTable(WorkflowsConfig(submitted=4))
    for number in range(3):
        one_for_all.check_room("-", f"r{number}")  # no keys are configured
        one_for_all.add(run_of(f"r{number}", "-", one_for_all.held))


def test_what_one_key_holds_keeps_no_other_out() -> None:
    table = RunTable(WorkflowsConfig(held_bytes=100))
    table.add(run_of("a", "alice", table.held, request={"messages": ["x" * 60]}))
    with pytest.raises(RequestFault, match=r"half of workflows\.held_bytes"):
        table.check_room("alice", "a2")
    table.check_room("bob", "b")


def test_results_are_kept_for_a_while_and_then_forgotten() -> None:
    table = RunTable(WorkflowsConfig(kept_seconds=10.0))
    over(table, "w", "k")
    table.remember("k", "token", "w", b"body")
    table.forget_old(11.0)
    assert table.get("k", "w") is not None
    table.forget_old(11.5)
    assert table.get("k", "w") is None and table.held.count == 0
    assert table.same_submission("k", "token", b"body") == "w"
    with pytest.raises(RequestFault, match="another body"):
        table.same_submission("k", "token", b"other")


# --- streams ---


class Reader:
    """The client of a stream, as a RunStream sees it."""

    def __init__(self) -> None:
        self.write_paused = False
        self.sent = b""
        self.on_resume: Any = None

    def begin_stream(self, headers: Any = ()) -> None:
        pass

    def send(self, data: bytes) -> None:
        self.sent += data

    def end(self) -> None:
        self.sent += b"END"

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        blocks = self.sent.removesuffix(b"END").decode().split("\n\n")[:-1]
        return [
            (name.removeprefix("event: "), json.loads(data))
            for name, data in (block.split("\ndata: ") for block in blocks)
        ]


def stream_of(run: WorkflowRun) -> tuple[Reader, Any]:
    """A stream at its first step: it has told what has been and listens."""
    reader = Reader()
    playing = RunStream(cast("OwnRequest", reader), run).play()
    return reader, playing


def test_a_slow_reader_is_told_all_that_was_said() -> None:
    async def main() -> None:
        run = run_of("w")
        reader, playing = stream_of(run)
        task = asyncio.ensure_future(playing)
        await asyncio.sleep(0)
        run.begin(0.0)
        node = run.nodes["a"]
        run.sent(node)
        run.delta(node, "one ")
        reader.write_paused = True
        run.delta(node, "two ")
        run.delta(node, "three")
        run.finished(node, "one two three", None, 1.0)
        await task
        told = reader.told()
        assert "".join(data["delta"] for name, data in told if name == "node.delta") == "one two three"
        assert [name for name, _ in told][-2:] == ["node.finished", "workflow.finished"]
        assert not run.listeners and not node.pieces

    asyncio.run(main())


@pytest.mark.parametrize(("tool", "event"), [(True, "tool.started"), (False, "node.started")])
def test_who_comes_later_is_told_what_goes_on(tool: bool, event: str) -> None:
    async def main() -> None:
        run = run_of("w", **({"tool": True} if tool else {"request": {"messages": []}}))
        run.begin(0.0)
        node = run.nodes["a"]
        if not tool:
            run.sent(node)
            run.delta(node, "so far")
        reader, playing = stream_of(run)
        task = asyncio.ensure_future(playing)
        await asyncio.sleep(0)
        names = [name for name, _ in reader.told()]
        assert names == ["workflow.started", event, *([] if tool else ["node.delta"])]
        run.cancel(1.0)
        await task
        assert [name for name, _ in reader.told()][-2:] == ["node.cancelled", "workflow.finished"]

    asyncio.run(main())


def test_of_very_many_that_wait_for_a_node_some_are_told_at_a_time() -> None:
    count = 2 * TOLD_A_TURN + 1
    nodes = [{"id": "a", "tool": True}, *[{"id": f"t{at}", "tool": True, "after": ["a"]} for at in range(count)]]
    submission = parse({"nodes": nodes}, Bounds(count + 1, 1, 1))
    run = WorkflowRun("w", "k", submission, 0.0, HeldBytes())
    run.begin(0.0)
    run.tool_done("a", "x", None, 1.0)
    told = []
    while True:
        told.append(sum(node.status is NodeStatus.ACTING for node in run.nodes.values()))
        if not run.untold:
            break
        run.tell_on(2.0)
    assert told == [TOLD_A_TURN, 2 * TOLD_A_TURN, count]
    run.cancel(3.0)
    assert run.over and not run.untold


def test_cancelling_ends_all_whatever_a_listener_does() -> None:
    run = run_of("w")
    run.begin(0.0)

    def fails(event: str, node: object) -> None:
        raise ValueError("a listener's own fault")

    run.listeners.append(fails)
    with pytest.raises(ValueError, match="own fault"):
        run.cancel(1.0)
    assert run.over and run.nodes["a"].status is NodeStatus.CANCELLED
