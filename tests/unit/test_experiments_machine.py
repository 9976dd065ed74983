"""Whatever happens to an experiment in whatever order: its invariants hold, and each block is closed once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.experiments import Experiment, WorkflowOutcome, guardrail_of, resume, saved
from tests.unit.experiment_rows import definition

START = 1000.0
DESIGNS: list[dict[str, Any]] = [
    {},
    {"ramp_up": (0.3,)},
    {"design": "split_and_swap", "engines": ("a", "b")},
    {"design": "interleaved", "effect_independent": True, "metric": "errors"},
    {"design": "shadow"},
]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("go"), st.floats(0.1, 150.0)),
        st.tuples(st.just("tick"), st.just(0)),
        st.tuples(st.just("begin"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 30)),
        st.tuples(st.just("energy"), st.floats(0.1, 50.0)),
        st.tuples(st.just("mark"), st.floats(0.0, 200.0)),
        st.tuples(st.just("clock"), st.sampled_from([0.0, 0.0, 50.0])),
        st.tuples(st.just("restart"), st.floats(0.0, 300.0)),
        st.tuples(st.just("stop"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DESIGNS), STEPS)
def test_whatever_happens(design: dict[str, Any], steps: list[tuple[str, Any]]) -> None:
    guards = (
        guardrail_of("p95_workflow_seconds:+5%"),
        guardrail_of("errors:+5pp"),
        guardrail_of("deadline_misses:+1pp"),
    )
    defined = definition(pairs=6, guardrails=guards, guardrail_workflows=5, **design)
    experiment = Experiment(defined, START)
    now, rows, arms, began = START, [], {}, {}
    for what, value in steps:
        name = f"wf-{value}"
        if what == "go":
            now += value
        elif what == "begin":
            given_ = experiment.assign(name, now)
            if name not in arms or experiment.ended_at is not None:
                arms[name] = given_.arm
                began[name] = now
            assert given_.arm == arms[name], "a workflow keeps its arm"
        elif what in ("end", "fail"):
            seconds = now - began.get(name, now)
            experiment.record(WorkflowOutcome(name, seconds, now, "chat", what == "fail", value % 2 == 0, 5, 7))
            arms.pop(name, None)
        elif what == "forget":
            experiment.forget(name)
            arms.pop(name, None)
        elif what == "energy":
            experiment.add_energy(now - value, now, value, None, 1.0, "measured", int(value) % 2)
        elif what == "mark":
            experiment.mark("engine_lost", now, now + value)
        elif what == "clock":
            experiment.clocks(now, now + value)
        elif what == "tick":
            rows += experiment.tick(now)
        elif what == "stop":
            rows += experiment.stop(now, "by hand")
            arms.clear()
        else:
            state = json.loads(json.dumps(saved(experiment, now)))
            now += value
            experiment = resume(state, now)
        if experiment.ended_at is not None:
            arms.clear()
        experiment.validate()
        assert json.dumps(experiment.status(now))
    rows += experiment.tick(now + 5000.0)
    rows += experiment.tick(now + 9000.0)
    experiment.validate()
    assert experiment.state != "running"
    places = [(row.number, row.arm) for row in rows]
    assert len(set(places)) == len(places), "each row is closed once"
    for row in rows:
        assert row.timed <= row.began
        assert row.unfinished <= row.timed
        assert (row.gpu_joules is None) == (row.energy_source == "unavailable") == ("energy_unavailable" in row.marks)
        assert len(row.workflow_seconds) == row.timed
    if experiment.stopped_why is None:
        both = defined.design in ("split_and_swap", "interleaved")
        assert len(rows) == 1 + defined.blocks * (2 if both else 1)
        assert sum(1 for row in rows if row.number == -1) == 1


def test_the_record_of_a_broken_invariant_is_an_assertion() -> None:
    experiment = Experiment(definition(), START)
    block = experiment.schedule.block(0)
    experiment.assign("a", block.measured_from + 1.0)
    experiment.rows.clear()
    with pytest.raises(AssertionError, match="a row that is closed"):
        experiment.validate()
