"""The demo's table and what it says of it: what was measured and nothing else."""

from __future__ import annotations

import random

import pytest

from bench.demo_load import MIX, arrivals
from bench.demo_table import Figures, figures, table, verdict
from workloads.player import PlayedCall, PlayedWorkflow
from workloads.shapes import chat

CALIBRATION = "h200-llama-3.1-8b"


def of(policy: str, joules: float, **changes: float | None) -> Figures:
    """A run of 10 workflows."""
    run = Figures(policy, 30, 0, 10, 0.5, 2.0, joules, 100.0, 0.0, 2000, 80.0)
    return run._replace(**changes)  # type: ignore[arg-type]  # mypy does not follow **


def played(seconds: float, error: str = "", at: float = 1.0) -> PlayedWorkflow:
    """A workflow of one call that took so long by the wall clock."""
    call = PlayedCall("answer", at, at, at + seconds, 503 if error else 200, error, 100, 0, 0 if error else 50)
    return PlayedWorkflow(chat("c", random.Random(1)), at, at + seconds, (call,))


def test_figures_are_in_simulated_seconds_and_failures_are_no_workflows() -> None:
    runs = [played(0.1), played(0.3), played(0.2, error="503: full", at=2.0)]
    found = figures(
        "fifo", runs, speed=10, joules=600.0, horizon_seconds=11.0, measured_seconds=11.2, deadlines=[0.2, 0.2, 9.0]
    )
    assert (found.calls, found.failed_calls, found.workflows, found.late) == (3, 1, 2, 1)
    assert found.p50_seconds == pytest.approx(2.0) and found.p95_seconds == pytest.approx(2.9)
    assert found.joules_per_workflow == 300.0
    assert found.active_seconds == pytest.approx(12.0) and found.over_seconds == pytest.approx(1.0)
    assert found.tokens_per_second == pytest.approx(100 / 12)


def test_nothing_answered_is_no_figure() -> None:
    found = figures("fifo", [], speed=10, joules=600.0, horizon_seconds=11.0, measured_seconds=11.0)
    assert found.joules_per_workflow is None and found.p50_seconds is None and found.tokens_per_second == 0
    assert table([of("passthrough", 1000.0), found])[3].split()[-4:] == ["-", "-", "-", "0.0"]
    (said, *_) = verdict([of("passthrough", 1000.0), found])
    assert "cannot be compared" in said


def test_the_best_stands_beside_the_baseline() -> None:
    runs = [of("passthrough", 1000.0), of("las", 990.0), of("joule", 800.0, p95_seconds=2.5)]
    head, _, base, best, difference = table(runs)
    assert head.startswith("simulated") and max(map(len, table(runs))) <= 78
    assert base.split() == ["passthrough", "30", "10", "0.50", "s", "2.00", "s", "100.0", "J", "25.0"]
    assert best.split()[0] == "joule"
    assert difference.split() == ["difference", "0", "0", *["+0.0", "%", "+25.0", "%", "−20.0", "%", "+0.0", "%"]]
    assert list(verdict(runs)) == [
        "joule takes 20.0 % fewer joules a workflow.",
        "Behind their deadlines: 0 under passthrough, 0 under joule.",
        "Also run: las, 99.0 J a workflow.",
    ]


def test_a_difference_within_the_noise_is_no_saving() -> None:
    (same, _) = verdict([of("passthrough", 1000.0), of("fifo", 985.0)])
    assert same.startswith("fifo saves nothing here: 1.5 %")
    (more, _) = verdict([of("passthrough", 1000.0), of("fifo", 1100.0)])
    assert more == "fifo takes 10.0 % more joules a workflow."


def test_a_longer_run_is_said() -> None:
    *_, late = verdict([of("passthrough", 1000.0), of("fifo", 1000.0, over_seconds=3.0)])
    assert late.startswith("fifo went on 3.0 s behind the horizon")


def test_the_baseline_may_stand_alone() -> None:
    assert len(table([of("passthrough", 1000.0)])) == 3
    assert list(verdict([of("passthrough", 1000.0)])) == []


def test_the_load_is_the_seeds() -> None:
    load = arrivals(1, 100.0, 5.0, CALIBRATION)
    assert load == arrivals(1, 100.0, 5.0, CALIBRATION) != arrivals(2, 100.0, 5.0, CALIBRATION)
    assert load[0].seconds == 0.0 and all(arrival.seconds * 5 < 90.0 for arrival in load)
    assert {arrival.workflow.kind for arrival in load} == MIX.keys()
    assert len({arrival.workflow.id for arrival in load}) == len(load)
    assert len(arrivals(1, 0.1, 1.0, CALIBRATION)) == 1, "there is always something to play"
