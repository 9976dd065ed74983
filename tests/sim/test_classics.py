"""What `parrot` and `las` are for, in short runs of the twin: the bench's figures have their signs here already."""

from __future__ import annotations

import pytest

from bench.policies.cells import Cell
from bench.policies.classics import NOTHING, once, ordered, shared_prefixes
from bench.policies.lab import Run, play
from workloads.shapes import CallShape, Part, WorkflowShape


def test_joins_do_not_queue_behind_later_maps_under_parrot() -> None:
    fifo, parrot = ordered("map-reduce", 24.0, 16, 40.0)
    assert fifo.workflows == parrot.workflows > 20
    assert parrot.seconds < 0.8 * fifo.seconds


def test_parrot_computes_shared_beginnings_about_once() -> None:
    (fifo, parrot), needed = shared_prefixes("coding", 20.0, 4, 40.0)
    assert needed <= parrot.prefill_tokens < 1.1 * needed
    assert parrot.prefill_tokens < 0.95 * fifo.prefill_tokens


def test_las_lets_short_workflows_pass_where_there_is_too_much() -> None:
    def mean(policy: str) -> float:
        done = play(Run(Cell("composite", 20.0), NOTHING, policy, (("max_in_flight", 16),), 30.0))
        return sum(done.seconds) / done.workflows

    assert mean("las") < 0.8 * mean("fifo")


def test_what_was_decoded_need_not_be_computed_again() -> None:
    first = CallShape("a", (), (Part("task", 100),), 50)
    second = CallShape("b", ("a",), (Part("task", 100), Part("w a", 50, "a"), Part("more", 7)), 5)
    assert once([WorkflowShape("w", "chain", (first, second))]) == 107
    assert once([]) == pytest.approx(0)
