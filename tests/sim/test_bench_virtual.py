"""Configurations played in virtual time: the same work under every policy and way, and what their rows say of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from bench.cli import main
from bench.load.cell import Outcome, play_virtual
from bench.load.columns import names
from bench.load.load import load_of
from bench.load.spec import Spec, of
from bench.load.virtual import VirtualArm
from bench.programs import BenchError
from workloads.ways import WAYS

SMALL: dict[str, Any] = {"preset": "small", "seconds": 20, "warm_up_seconds": 5, "rate": 6}


def played(**values: Any) -> Outcome:
    return play_virtual(of(SMALL | values), 1)


def seen(outcome: Outcome, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(call[name] for name in columns) for call in outcome.rows["call"])


@pytest.mark.parametrize("workload", ["chain", "map-reduce", "copilot", "coding", "chat", "composite"])
def test_every_call_of_every_workflow_is_there_and_sums_add_up(workload: str) -> None:
    outcome = played(workload=workload)
    (repeat,), workflows = outcome.rows["repeat"], outcome.rows["workflow"]
    calls, windows = outcome.rows["call"], outcome.rows["window"]
    load = load_of(of(SMALL | {"workload": workload}), 1)
    assert len(workflows) == len(load.arrivals) == repeat["good_workflows"] and len(calls) == load.calls
    wanted = {(a.workflow.id, c.node): (c.prompt_tokens, c.output_tokens, a.seconds) for a in load.arrivals
              for c in a.workflow.calls}  # fmt: skip
    assert {(c["workflow"], c["node"]): (c["prompt_tokens"], c["output_tokens"]) for c in calls} == {
        key: value[:2] for key, value in wanted.items()
    }
    for workflow, arrival in zip(workflows, load.arrivals, strict=True):
        assert workflow["intended_s"] == pytest.approx(arrival.seconds, abs=1e-6)
        assert workflow["ended_s"] <= repeat["ended_s"] and workflow["seconds"] >= 0.99 * workflow["isolated_s"]
    ended = {(call["workflow"], call["node"]): call["ended_s"] for call in calls}
    for call in calls:
        for node in call["after"]:
            assert ended[call["workflow"], node] <= call["intended_s"] + 1e-9
        assert call["intended_s"] <= call["sent_s"] <= call["first_token_s"] <= call["ended_s"]
    assert repeat["output_tokens"] == sum(call["output_tokens"] for call in calls)
    assert repeat["gpu_joules"] == pytest.approx(math.fsum(window["gpu_joules"] for window in windows))
    assert windows[0]["start_s"] == 0 and windows[-1]["ended_s"] == pytest.approx(repeat["ended_s"])
    for before, after in itertools.pairwise(windows):
        assert before["ended_s"] == after["start_s"]
    assert 0 < repeat["generating_s"] <= repeat["ended_s"]
    for kind, rows in outcome.rows.items():
        assert all(row.keys() <= set(names(kind)) for row in rows)


def test_the_same_work_under_every_policy_limit_and_way() -> None:
    usual = seen(played(workload="coding"), "workflow", "node", "prompt_tokens", "output_tokens")
    for values in (
        {"policy": "fifo", "in_flight": 2},
        {"policy": "none"},
        {"cap_watts": 300},
        *({"way": way, "tell_lengths": True} for way in WAYS),
    ):
        found = played(workload="coding", **values)
        assert seen(found, "workflow", "node", "prompt_tokens", "output_tokens") == usual, values


def test_a_repeat_is_the_same_each_time_and_unlike_the_next() -> None:
    columns = ("workflow", "node", "sent_s", "ended_s", "cached_tokens")
    one, again = (seen(played(workload="composite"), *columns) for _ in range(2))
    assert one == again
    spec = of(SMALL | {"workload": "composite"})
    first, second = load_of(spec, 1), load_of(spec, 2)
    assert {a.workflow.id for a in first.arrivals}.isdisjoint(a.workflow.id for a in second.arrivals)
    assert [a.seconds for a in first.arrivals] != [a.seconds for a in second.arrivals]


def test_a_limit_of_one_makes_calls_wait_and_the_seconds_count_it() -> None:
    free, tight = played(workload="map-reduce"), played(workload="map-reduce", in_flight=1)
    assert tight.figures["workflow_p50_s"] > 1.5 * free.figures["workflow_p50_s"]  # type: ignore[operator]
    spans = sorted((call["first_token_s"], call["ended_s"]) for call in tight.rows["call"])
    assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(spans))
    held = [call["held_s"] for call in tight.rows["call"]]
    assert max(held) > 0 and all(
        0 <= call["held_s"] <= call["first_token_s"] - call["intended_s"] for call in tight.rows["call"]
    )
    assert all(call["held_s"] == 0 for call in free.rows["call"])


def test_a_cap_costs_time_and_saves_power() -> None:
    free, capped = (played(workload="coding", seconds=60, rate=40, cap_watts=cap) for cap in (None, 250))
    assert capped.figures["mean_watts"] < free.figures["mean_watts"]  # type: ignore[operator]
    assert capped.figures["workflow_p50_s"] > free.figures["workflow_p50_s"]  # type: ignore[operator]
    assert all(window["limit_watts"] <= 251 for window in capped.rows["window"])


def test_users_follow_on_one_another() -> None:
    outcome = played(workload="chain", arrivals="closed", users=3, workflows=9, think_seconds=2.0)
    workflows = outcome.rows["workflow"]
    assert len(workflows) == 9 and sum(each["intended_s"] == 0 for each in workflows) == 3
    ends = [each["ended_s"] + 2.0 for each in workflows]
    for each in workflows[3:]:
        assert min(abs(each["intended_s"] - end) for end in ends) < 1e-9
    edges = sorted([(each["intended_s"], 1) for each in workflows] + [(each["ended_s"], -1) for each in workflows])
    assert max(sum(step for _, step in edges[: n + 1]) for n in range(len(edges))) <= 3


def test_deadlines_are_judged_from_the_intended_start() -> None:
    outcome = played(workload="map-reduce", stretch=3.0, in_flight=2)
    for workflow in outcome.rows["workflow"]:
        assert workflow["deadline_s"] == pytest.approx(3 * workflow["isolated_s"])
        assert workflow["missed"] is (workflow["seconds"] > workflow["deadline_s"])
    missed = sum(workflow["missed"] for workflow in outcome.rows["workflow"])
    assert outcome.rows["repeat"][0]["missed_workflows"] == missed > 0
    assert played(workload="chain").rows["repeat"][0]["missed_workflows"] is None


def test_joules_of_calls_are_the_gateways_and_there_are_none_without_one() -> None:
    with_one, without = played(workload="copilot"), played(workload="copilot", policy="none")
    assert all(call["gpu_joules"] > 0 and call["energy_source"] == "simulated" for call in with_one.rows["call"])
    assert all(call["gpu_joules"] is call["held_s"] is call["engine"] is None for call in without.rows["call"])
    assert without.rows["repeat"][0]["gpu_joules"] > 0
    assert {note.code for note in without.notes} == {"no_gateway_time"}


@pytest.mark.parametrize("load", [{"arrivals": "closed", "users": 6, "workflows": 8}, {"cap_watts": 300}])
def test_without_a_gateway_the_engine_sees_what_passthrough_would_send(load: dict[str, Any]) -> None:
    """`none` is played past the scheduler, for its cost; the least limit makes calls wait."""
    common = {"workload": "composite", "way": "bare", "in_flight": 3, "warm_up_seconds": 0, **load}
    direct, through = played(policy="none", **common), played(policy="passthrough", **common)
    of_a_gateway = {"held_s", "engine", "energy_source", "gpu_joules"}
    for kind in ("call", "workflow", "window", "repeat"):
        told = of_a_gateway if kind in ("call", "workflow") else {"started_unix_s"}
        rows, others = ([{k: v for k, v in row.items() if k not in told} for row in outcome.rows[kind]]
                        for outcome in (direct, through))  # fmt: skip
        assert rows == others
    assert any(call["held_s"] for call in through.rows["call"])


def test_a_play_that_is_broken_off_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = of(SMALL | {"workload": "chain", "warm_up_seconds": 0})
    load = load_of(spec, 1)
    arm = VirtualArm(spec)
    half = load.arrivals[len(load.arrivals) // 2].seconds

    def interrupt() -> None:
        raise KeyboardInterrupt

    arm.world.time.at(half, interrupt)
    playing = arm.play(load)
    assert not playing.complete
    assert 0 < len(playing.workflows) < len(load.arrivals)
    assert any(not each.complete for each in playing.workflows)
    assert playing.windows[-1]["ended_s"] == pytest.approx(half)


def test_nothing_to_play_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(BenchError, match="no workflow begins within"):
        load_of(Spec(workload="coding", rate=0.0001, seconds=1.0), 1)
    options = ["--workload", "coding", "--rate", "0.0001", "--seconds", "1", "--warm-up-seconds", "0"]
    assert main(["run", *options, "--out", str(tmp_path)]) == 2
    assert "take more --seconds or a higher --rate" in capsys.readouterr().err
