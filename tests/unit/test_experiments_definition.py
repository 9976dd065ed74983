"""What may be an experiment: definitions read and refused, with the field and the numbers that say why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.experiments import Arm, Experiment, ExperimentError, definition_of, guardrail_of, problems
from tests.unit.experiment_rows import ARMS, definition

POLICIES = {"passthrough": (), "fifo": ("max_in_flight",)}


def test_a_sound_one_has_no_problems() -> None:
    assert problems(definition(), policies=POLICIES, p95_workflow_seconds=18.0, cap_settling_seconds=2.0) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": (ARMS[0], ARMS[0])}, "arms: both are"),
        ({"arms": (ARMS[0],)}, "arms: there must be 2, the control and the treatment, not 1"),
        ({"aa": True}, "aa: the arms are not the same"),
        ({"arms": (ARMS[0], Arm("jule"))}, 'arms[1].policy: "jule" is no policy'),
        ({"arms": (ARMS[0], Arm("fifo", {"depth": 3}))}, 'arms[1].options: fifo has no option "depth"'),
        ({"metric": "joules_per_workflw"}, 'did you mean "joules_per_workflow"?'),
        ({"block_seconds": 20.0}, "block_seconds: 20 s is not above the wash-out of 20 s"),
        ({"block_seconds": 30.0}, "of 30 s only 10 s are left by the wash-out of 20 s"),
        ({"washout_seconds": 15.0}, "washout_seconds: 15 s is below 20 s, the p95 workflow time of 18 s and 2 s"),
        ({"pairs": 5}, "pairs: must be from 6 to 20000, not 5"),
        ({"ramp_up": (0.5, 0.1)}, "ramp_up: the shares must rise"),
        ({"ramp_up": (0.0,)}, "ramp_up[0]: must be a share above 0"),
        ({"design": "split_and_swap", "engines": ("a", "b", "c")}, "split_and_swap needs an even number of them"),
        ({"design": "interleaved", "metric": "errors"}, "declare effect_independent = true"),
        ({"design": "interleaved", "effect_independent": True}, "cannot be told apart between arms"),
        ({"guardrails": (guardrail_of("throughput:+5%"),)}, 'guardrails[0]: "throughput" is no metric'),
        ({"guardrails": (guardrail_of("joules_per_workflow:+5%"),)}, "cannot stop an experiment"),
        ({"guardrails": (guardrail_of("p95_workflow_seconds:+5pp"),)}, "is no share"),
        ({"id": "../x"}, "id: "),
        ({"id": ".."}, 'must not begin with "."'),
        ({"block_seconds": float("nan")}, "block_seconds: must be from 10"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(changes: dict[str, Any], told: str) -> None:
    found = problems(definition(**changes), policies=POLICIES, p95_workflow_seconds=18.0, cap_settling_seconds=2.0)
    assert any(told in text for text in found), found


def test_two_on_one_pool_are_refused_and_two_on_two_are_not() -> None:
    other = definition(id="other")
    assert problems(definition(), running=[other]) == [
        (
            'pool: "default" is taken by experiment "other"; stop that, wait for its end, or give this one a pool and'
            " engines of its own"
        )
    ]
    elsewhere = definition(id="other", pool="b", engines=("c",))
    assert problems(definition(engines=("a",)), running=[elsewhere]) == []
    assert "engines: c belong" in problems(definition(engines=("a", "c")), running=[elsewhere])[0]
    assert "id: an experiment" in problems(definition(pool="b"), running=[definition()])[0]


def test_a_definition_goes_through_json() -> None:
    whole = definition(
        guardrails=(guardrail_of("p95_workflow_seconds:+5%"), guardrail_of("errors:+0.5pp")), ramp_up=(0.1, 0.5)
    )
    assert definition_of(json.loads(json.dumps(whole.as_json()))) == whole
    assert definition_of({"id": "x", "arms": ["passthrough", "fifo"]}).arms == (Arm("passthrough"), Arm("fifo"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"arms": ["a", "b"]}, "id: is required"),
        ({"id": "x", "arms": ["a", "b"], "block_second": 3}, "block_second: unknown field"),
        ({"id": "x", "arms": ["a", "b"], "block_seconds": "3"}, "block_seconds: '3' does not fit float"),
        ({"id": "x", "arms": ["a", "b"], "pairs": True}, "pairs: True does not fit int"),
        ({"id": "x", "arms": [{"policy": "a", "cap_mode": "hot"}, "b"]}, "cap_mode is one of off, observe, actuate"),
        ({"id": "x", "arms": [{"policy": "a", "depth": 1}, "b"]}, "unknown in an arm: depth"),
        ({"id": "x", "arms": ["a", "b"], "design": "coin"}, "a design is one of switchback"),
        ({"id": "x", "arms": ["a", "b"], "guardrails": ["p95 5%"]}, "is not METRIC:+5%"),
        ({"id": "x", "arms": 3}, "arms: 3 does not fit"),
    ],
)
def test_bad_fields_are_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        definition_of(values)
    assert told in str(raised.value)


def test_guardrails_read_and_said() -> None:
    guardrail = guardrail_of(" p95_workflow_seconds: +5 %")
    assert (guardrail.limit, guardrail.relative, str(guardrail)) == (0.05, True, "p95_workflow_seconds:+5%")
    assert guardrail_of("errors:0.5pp").allowed(0.01) == pytest.approx(0.015)
    assert guardrail_of("errors:10%").allowed(0.01) == pytest.approx(0.011)


def test_one_that_cannot_be_run_is_no_experiment() -> None:
    with pytest.raises(ExperimentError, match="block_seconds"):
        Experiment(definition(block_seconds=20.0), 0.0)
