"""What is kept of workflows that are over, and whose go first."""

from __future__ import annotations

import pytest

from scheduler.workflow import NodeSpec, WorkflowBook, WorkflowLimits, WorkflowSpec


@pytest.mark.parametrize(("limits", "nodes"), [({"closed_workflows": 4}, 1), ({"nodes": 8}, 2)])
def test_one_keys_closed_workflows_push_out_its_own(limits: dict[str, int], nodes: int) -> None:
    book = WorkflowBook(WorkflowLimits(**limits))
    specs = tuple(NodeSpec(f"n{number}") for number in range(nodes))
    for number, key in enumerate(["quiet", *["loud"] * 9]):
        book.declare(WorkflowSpec(key, f"w{number}", nodes=specs), float(number))
        book.close(key, f"w{number}", number + 0.5)
        book.validate()
    assert book.workflow("quiet", "w0") is not None
    assert [number for number in range(1, 10) if book.workflow("loud", f"w{number}")] == [7, 8, 9]
