"""Which live workflows go where there is no room: those of who has most, never those of who has less."""

from __future__ import annotations

import pytest

from scheduler.events import CallArrived
from scheduler.workflow import GraphFault, NodeSpec, WorkflowBook, WorkflowLimits, WorkflowSpec


def declared(book: WorkflowBook, key: str, name: str, now: float, nodes: int = 1) -> bool:
    specs = tuple(NodeSpec(f"n{number}") for number in range(nodes))
    try:
        book.declare(WorkflowSpec(key, name, nodes=specs), now)
    except GraphFault:
        return False
    finally:
        book.validate()
    return True


def hinted(book: WorkflowBook, key: str, name: str | None, now: float) -> bool:
    """A call that stays here."""
    node = book.call_arrived(CallArrived(f"{key} {name} {now}", key, "m", name, 10), now)
    book.validate()
    return node is not None


def live(book: WorkflowBook, key: str) -> list[str]:
    return [workflow.id for workflow in book.tables.live() if workflow.key == key]


@pytest.mark.parametrize(("limits", "nodes"), [({"workflows": 4}, 1), ({"nodes": 8}, 2)])
def test_one_keys_flood_pushes_out_its_own(limits: dict[str, int], nodes: int) -> None:
    book = WorkflowBook(WorkflowLimits(**limits))
    assert declared(book, "quiet", "w", 0.0, nodes)
    for number in range(9):
        assert declared(book, "loud", f"w{number}", 1.0 + number, nodes)
    assert live(book, "quiet") == ["w"] and live(book, "loud") == ["w6", "w7", "w8"]


def test_a_flood_of_calls_that_are_under_way_pushes_out_nobody() -> None:
    """Its own cannot go, and others' must not."""
    book = WorkflowBook(WorkflowLimits(workflows=4))
    assert declared(book, "quiet", "w", 0.0)
    assert [hinted(book, "loud", f"w{number}", 1.0 + number) for number in range(5)] == [True] * 3 + [False] * 2
    assert live(book, "quiet") == ["w"]
    assert hinted(book, "quiet", "x", 9.0)  # nothing of who has more can go, so its own did
    assert live(book, "quiet") == ["x"]


def test_unnamed_calls_push_out_no_named_workflow_of_another_key() -> None:
    book = WorkflowBook(WorkflowLimits(nodes=4))
    assert declared(book, "quiet", "w", 0.0)
    for number in range(9):
        hinted(book, "loud", None, 1.0 + number)
    assert live(book, "quiet") == ["w"] and len(live(book, "loud")) == 3


def test_who_comes_new_gets_room_from_who_has_most() -> None:
    book = WorkflowBook(WorkflowLimits(workflows=4))
    assert declared(book, "b", "b0", 0.0)
    for number in range(3):
        assert declared(book, "a", f"a{number}", 1.0 + number)
    assert declared(book, "c", "c0", 5.0)
    assert (live(book, "a"), live(book, "b"), live(book, "c")) == (["a1", "a2"], ["b0"], ["c0"])
    assert declared(book, "d", "d0", 6.0)
    assert declared(book, "e", "e0", 7.0)  # all have one: the one that has been silent for longest
    assert (live(book, "a"), live(book, "b"), live(book, "e")) == (["a2"], [], ["e0"])


def test_a_large_graph_is_no_reason_to_drop_what_others_have() -> None:
    book = WorkflowBook(WorkflowLimits(nodes=10))
    assert declared(book, "small", "w", 0.0, nodes=4)
    assert not declared(book, "large", "w", 1.0, nodes=8)
    assert live(book, "small") == ["w"]
    assert declared(book, "large", "w", 2.0, nodes=6)
