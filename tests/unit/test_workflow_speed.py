"""The bench of the graph: it runs, prints every figure, and its exit code says whether a bound was missed."""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Iterator

import pytest

from bench import workflow_speed
from scheduler.workflow import WorkflowBook, WorkflowSpec


@pytest.fixture
def collector() -> Iterator[None]:
    """The bench sets the garbage collector as the gateway does."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    workflow_speed.add_options(parser)
    return parser.parse_args(words)


@pytest.mark.usefixtures("collector")
def test_it_prints_every_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = options("--declared", "50", "--nodes", "200", "--calls", "30")
    monkeypatch.setattr(workflow_speed, "SLACK_US_MAX", 1e9)
    monkeypatch.setattr(workflow_speed, "HINTED_US_MAX", 1e9)
    monkeypatch.setattr(workflow_speed, "DECLARED_MS_MAX", 1e9)
    monkeypatch.setattr(workflow_speed, "SUBMITTED_MS_MAX", 1e9)
    monkeypatch.setattr(workflow_speed, "SUBMISSIONS", 2)
    assert workflow_speed.run(small) == 0
    shown = capsys.readouterr().out
    for title in (
        *workflow_speed.SHAPES,
        "graphs of 10",
        "graphs of 100",
        "growing call by call",
        "through the gateway",
    ):
        assert title in shown
    monkeypatch.setattr(workflow_speed, "HINTED_US_MAX", 0.0)
    assert workflow_speed.run(small) == 1
    assert "a hinted call takes" in capsys.readouterr().err


@pytest.mark.parametrize("shape", workflow_speed.SHAPES)
def test_its_graphs_are_what_they_are_called(shape: str) -> None:
    nodes = tuple(workflow_speed.SHAPES[shape](300, random.Random(1)))
    book = WorkflowBook()
    graph = book.declare(WorkflowSpec("key", "wf", nodes=nodes), 0.0).graph
    book.validate()
    widest = max(graph.dag.in_degree[node] for node in graph.dag), max(graph.dag.out_degree[node] for node in graph.dag)
    assert {"chains": (1, 1), "fan-out": (1, 299), "map-reduce": (299, 1)}.get(shape, widest) == widest
    assert shape != "random DAG" or widest[0] <= 4


def test_its_timings_are_ordered() -> None:
    assert workflow_speed.timing([1000, 9000, 2000, 3000]) == (4, 3.0, 3.75, 9.0, 9.0)
