"""A running experiment: blocks from a seed, arms that stay, marks, guardrails, and its state over a restart."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.experiments import (
    CONTROL,
    TREATMENT,
    BlockRow,
    Definition,
    Experiment,
    ExperimentError,
    Schedule,
    WorkflowOutcome,
    guardrail_of,
    resume,
    saved,
)
from scheduler.experiments.guardrails import Guard, workflows_to_notice
from scheduler.experiments.marks import pairs_of
from scheduler.experiments.metrics import METRICS
from scheduler.experiments.rows import row_of
from scheduler.experiments.shadow import Comparison
from tests.unit.experiment_rows import definition

START = 1_700_000_000.0


@given(st.integers(0, 2**40), st.integers(0, 3000))
def test_each_pair_has_both_arms_and_seed_and_number_alone_decide(seed: int, pair: int) -> None:
    schedule = Schedule(definition(seed=seed, pairs=4000), START)
    blocks = [schedule.block(2 * pair), schedule.block(2 * pair + 1)]
    assert {block.arm for block in blocks} == {CONTROL, TREATMENT}
    assert [Schedule(definition(seed=seed, pairs=4000), 7.0).block(2 * pair + place).arm for place in (0, 1)] == [
        block.arm for block in blocks
    ]


def test_the_coin_is_fair_and_pairs_are_strangers() -> None:
    first = [Schedule(definition(seed=seed), 0.0).block(2 * pair).arm for seed in range(200) for pair in range(20)]
    assert 0.47 < sum(first) / len(first) < 0.53
    same = sum(a == b for a, b in pairwise(first)) / (len(first) - 1)
    assert 0.47 < same < 0.53


@settings(max_examples=300)
@given(st.floats(10.0, 5000.0), st.floats(0.0, 1e9), st.floats(-10.0, 1e6))
def test_the_block_of_a_time_has_that_time(block_seconds: float, start: float, after: float) -> None:
    schedule = Schedule(definition(block_seconds=block_seconds, washout_seconds=1.0, pairs=20_000), start)
    now = start + after
    if (block := schedule.block_at(now)) is not None and now >= start:
        assert block.start <= now < block.end
        assert schedule.block_at(block.end) != block
        assert schedule.number_at(block.start) == block.number


def drive(
    experiment: Experiment, until: float, *, seed: int = 1, slow: float = 1.0, fail: float = 0.0, rate: float = 1.0,
    energy: bool = True,
) -> list[BlockRow]:  # fmt: skip
    """A second at a time: workflows of about 2 s; the treatment's take `slow` times as long."""
    rng = random.Random(seed)
    rows: list[BlockRow] = []
    ends: list[tuple[float, WorkflowOutcome]] = []
    now = experiment.now
    number = 0
    while now < until and experiment.state == "running":
        rows += experiment.tick(now)
        for _ in range(round(rate)):
            number += 1
            name = f"wf-{seed}-{number}"
            arm = experiment.assign(name, now).arm
            treated = arm == TREATMENT
            seconds = rng.lognormvariate(0.6, 0.4) * (slow if treated else 1.0)
            failed = treated and rng.random() < fail
            ends.append((now + seconds, WorkflowOutcome(name, seconds, now + seconds, "chat", failed, None, 100, 50)))
        now += 1.0
        for at, outcome in sorted(ends):
            if at <= now:
                experiment.record(outcome)
        ends = [each for each in ends if each[0] > now]
        if energy:
            experiment.add_energy(now - 1.0, now, 300.0, 50.0, None, "measured")
    return rows + experiment.tick(now)


def test_a_whole_run_closes_each_block_once() -> None:
    defined = definition(pairs=6)
    experiment = Experiment(defined, START)
    rows = drive(experiment, START + 2000.0)
    assert experiment.state == "finished"
    assert [row.number for row in rows] == list(range(-1, 12))
    assert rows[0].marks == ("lead_in",)
    for row in rows[1:]:
        assert not row.marks
        assert row.arm == experiment.schedule.block(row.number).arm
        assert row.gpu_joules == pytest.approx(300.0 * 80.0)
        assert row.cpu_joules == pytest.approx(50.0 * 80.0)
        assert row.dram_joules is None, "a meter that is absent is not 0"
        assert row.began == row.timed == 80
        assert row.offered_tokens == 150 * 80
        assert sum(map(len, row.times.values())) == 80
        assert row_of(json.loads(json.dumps(row.as_json()))) == row
    pairs, left = pairs_of(rows, METRICS["joules_per_workflow"])
    assert len(pairs) == 6
    assert [row.number for row in left] == [-1]
    assert experiment.arm_at(START + 1e6) == CONTROL


def test_a_workflow_keeps_its_arm_over_the_edge() -> None:
    experiment = Experiment(definition(), START)
    block = experiment.schedule.block(0)
    other = experiment.schedule.block(1)
    assert block.arm != other.arm
    given_ = experiment.assign("long", block.end - 1.0)
    assert given_.arm == block.arm
    assert given_.counted
    assert experiment.assign("long", other.measured_from + 5.0).arm == block.arm
    assert experiment.arm_of("long", other.measured_from + 5.0) == block.arm
    assert experiment.assign("new", other.start + 1.0) == (other.arm, 1, 0, False)
    # It ended in a block of the other arm, which must not have it.
    experiment.record(WorkflowOutcome("long", 40.0, other.measured_from + 10.0))
    rows = {row.number: row for row in experiment.tick(other.end + 25.0)}
    assert (rows[0].timed, rows[0].seconds, rows[1].ended) == (1, 40.0, 0)


def test_what_is_not_over_in_time_counts_with_its_age() -> None:
    experiment = Experiment(definition(), START)
    block = experiment.schedule.block(0)
    experiment.assign("for ever", block.end - 10.0)
    (row,) = (row for row in experiment.tick(block.end + 20.0) if row.number == 0)
    assert (row.timed, row.unfinished, row.seconds) == (1, 1, 30.0)
    experiment.record(WorkflowOutcome("for ever", 99.0, block.end + 89.0))
    assert "for ever" not in experiment.live


def test_energy_is_shared_out_by_time_and_gaps_are_unavailable() -> None:
    experiment = Experiment(definition(), START)
    first, second = (experiment.schedule.block(number) for number in (0, 1))
    for at in (START, first.start, second.start):
        experiment.tick(at)
    experiment.add_energy(first.measured_from - 10.0, first.end + 10.0, 1000.0, None, None, "measured")
    experiment.add_energy(second.measured_from, second.end - 3.0, 1000.0, None, None, "measured")
    rows = {row.number: row for row in experiment.tick(second.end + 21.0)}
    assert rows[0].gpu_joules == pytest.approx(800.0)
    assert rows[1].gpu_joules is None
    assert (rows[1].marks, rows[1].energy_source) == (("energy_unavailable",), "unavailable")
    assert pairs_of(rows.values(), METRICS["joules_per_workflow"])[0] == []
    assert len(pairs_of([row for row in rows.values() if row.pair == 0], METRICS["errors"])[0]) == 1


def test_marks_exclude_the_block_and_with_it_the_pair() -> None:
    experiment = Experiment(definition(pairs=6, ramp_up=(0.3,)), START)
    experiment.clocks(START, START)
    rows = drive(experiment, experiment.schedule.block(4).start + 30.0)
    experiment.mark("engine_lost", experiment.now)
    rows += drive(experiment, experiment.schedule.block(7).start + 50.0, seed=2)
    experiment.clocks(experiment.now, experiment.now + 0.5)
    experiment.clocks(experiment.now, experiment.now + 30.0)
    rows += drive(experiment, START + 3000.0, seed=3)
    marks = {row.number: row.marks for row in rows if row.marks}
    assert marks == {-1: ("lead_in",), 0: ("ramp_up",), 1: ("ramp_up",), 4: ("engine_lost",), 7: ("clock_jump",)}
    assert [pair.number for pair in pairs_of(rows, METRICS["errors"])[0]] == [1, 4, 5, 6]
    assert experiment.marked == {"lead_in": 1, "ramp_up": 2, "engine_lost": 1, "clock_jump": 1}


def test_ramp_up_gives_a_share_the_treatment_by_the_ids_hash() -> None:
    experiment = Experiment(definition(ramp_up=(0.2, 0.6)), START)
    block = next(block for block in map(experiment.schedule.block, (0, 1)) if block.arm == TREATMENT)
    arms = [experiment.assign(f"wf-{number}", block.start + 30.0).arm for number in range(2000)]
    assert 0.17 < sum(arms) / 2000 < 0.23
    again = Experiment(definition(ramp_up=(0.2, 0.6)), START + 5e5)
    block = next(block for block in map(again.schedule.block, (0, 1)) if block.arm == TREATMENT)
    assert [again.assign(f"wf-{number}", block.start + 1.0).arm for number in range(2000)] == arms


def test_split_and_swap_has_both_arms_at_once_and_swaps_the_sides() -> None:
    experiment = Experiment(definition(design="split_and_swap", engines=("a", "b")), START)
    blocks = [experiment.schedule.block(number) for number in (0, 1)]
    for block in blocks:
        now = block.measured_from + 1.0
        assert {experiment.arm_at(now, side) for side in (0, 1)} == {CONTROL, TREATMENT}
        given_ = [experiment.assign(f"wf-{block.number}-{number}", now) for number in range(400)]
        assert 140 < sum(each.arm for each in given_) < 260
        assert all(experiment.arm_at(now, each.side) == each.arm for each in given_)
        for side, joules in ((0, 100.0), (1, 700.0)):
            experiment.add_energy(block.measured_from, block.end, joules, None, None, "measured", side)
    assert experiment.arm_at(blocks[0].measured_from, 0) != experiment.arm_at(blocks[1].measured_from, 0)
    rows = [row for row in experiment.tick(blocks[1].end + 21.0) if row.pair == 0]
    (pair,), _ = pairs_of(rows, METRICS["mean_workflow_seconds"])
    # The differences between cards cancel: each arm had each side once.
    assert (
        sum(row.gpu_joules or 0 for row in pair.control) == sum(row.gpu_joules or 0 for row in pair.treatment) == 800.0
    )


def test_interleaved_and_shadow() -> None:
    mixed = Experiment(definition(design="interleaved", effect_independent=True, metric="errors"), START)
    at = mixed.schedule.block(0).start + 1.0
    given_ = [mixed.assign(f"wf-{number}", at) for number in range(1000)]
    assert 440 < sum(each.arm for each in given_) < 560
    assert all(each.counted for each in given_), "no wash-out where arms do not alternate"
    assert len({row.arm for row in mixed.tick(at + 120.0) if row.number == 0}) == 2
    shadow = Experiment(definition(design="shadow"), START)
    assert {shadow.arm_at(START + 10.0 * number) for number in range(300)} == {CONTROL}
    shadow.tick(START)
    shadow.shadow_decision(Comparison(True, True, True, 0.0, -3.0, 30.0, 0.0), START)
    shadow.shadow_decision(Comparison(False, True, True, 2.0, None, None, 2.0), START)
    assert shadow.status(START)["shadow"] == {
        "decisions": 2, "same": 1, "same_time": 1, "same_engine": 2, "same_priority": 2, "later_seconds": 2.0,
        "seconds": 2.0, "joules": -3.0, "joules_of_control": 30.0, "predicted": 1,
    }  # fmt: skip
    assert shadow.rows[-1, CONTROL].shadow == shadow.shadow
    assert resume(json.loads(json.dumps(saved(shadow, START))), START).shadow == shadow.shadow


GUARDED = {"guardrails": (guardrail_of("p95_workflow_seconds:+5%"), guardrail_of("errors:+2pp")), "pairs": 20}


def first_treated(experiment: Experiment) -> float:
    return next(block.start for block in map(experiment.schedule.block, (0, 1)) if block.arm == TREATMENT)


@pytest.mark.parametrize(
    ("slow", "fail", "told"), [(2.0, 0.0, "p95_workflow"), (1.0, 0.3, "errors"), (50.0, 0.0, "p95")]
)
def test_a_harmful_treatment_is_stopped_within_its_first_block(slow: float, fail: float, told: str) -> None:
    experiment = Experiment(definition(**GUARDED), START)
    rows = drive(experiment, START + 5000.0, slow=slow, fail=fail, rate=2.0)
    assert experiment.state == "stopped"
    assert told in str(experiment.stopped_why)
    assert experiment.ended_at is not None
    assert 0 < experiment.ended_at - first_treated(experiment) <= 100.0
    assert "stopped" in rows[-1].marks
    # At once, and for those that had the treatment too.
    assert experiment.arm_at(experiment.ended_at) == CONTROL
    assert experiment.arm_of("any", experiment.ended_at) == CONTROL
    assert experiment.assign("new", experiment.ended_at).arm == CONTROL
    assert experiment.next_edge(experiment.ended_at) is None


def test_a_treatment_that_answers_nobody_is_found_out_without_answers() -> None:
    experiment = Experiment(definition(**GUARDED), START)
    drive(experiment, first_treated(experiment), rate=2.0)
    now = first_treated(experiment)
    while experiment.state == "running" and now < first_treated(experiment) + 100.0:
        experiment.assign(f"never-{now}", now)
        experiment.assign(f"never-too-{now}", now)
        now += 1.0
        experiment.tick(now)
    assert experiment.state == "stopped"


def test_how_many_workflows_a_guardrail_needs_is_about_right() -> None:
    defined = definition(**GUARDED)
    needed = workflows_to_notice(defined)
    guard = Guard(defined.guardrails[0], defined)
    times = tuple(float(number % 100) for number in range(needed))
    guard.learn(BlockRow(-1, -1, 0, 0.0, 0.0, 1.0, needed, needed, 0, 1.0, 0, 0, 0, needed, 0, 0, 0, None, None, None,
                         "unavailable", {"chat": times}, ("lead_in",)))  # fmt: skip
    assert guard.judge(round(0.3 * needed), needed).stop
    assert not guard.judge(round(0.15 * needed), needed // 2).stop
    assert not guard.judge(round(0.06 * needed), needed).stop


def test_cards_that_differ_cancel_in_split_and_swap() -> None:
    defined = definition(**{**GUARDED, "design": "split_and_swap", "engines": ("a", "b")})
    guard = Guard(defined.guardrails[0], defined)
    for pair in range(4):
        for place in (0, 1):
            for arm in (CONTROL, TREATMENT):
                slow = 2.0 if arm == place else 1.0
                times = tuple(slow * (1 + each / 100) for each in range(60))
                number = 2 * pair + place
                guard.learn(BlockRow(number, pair, arm, 0.0, 0.0, 1.0, 60, 60, 0, 1.0, 0, 0, 0, 60, 0, 0, 0, None, None,
                                     None, "unavailable", {"chat": times}))  # fmt: skip
        assert guard.pairs == pair + 1
    assert guard.sum == pytest.approx(-4 * math.log(1.05))


def test_equal_arms_are_left_alone() -> None:
    stopped = 0
    for seed in range(20):
        experiment = Experiment(definition(**{**GUARDED, "seed": seed}), START)
        drive(experiment, START + 5000.0, seed=seed, rate=1.0, energy=False)
        stopped += experiment.state == "stopped"
    assert stopped == 0


def test_a_small_harm_is_found_over_the_pairs() -> None:
    experiment = Experiment(definition(**{**GUARDED, "pairs": 200}), START)
    drive(experiment, START + 45_000.0, slow=1.3, rate=1.0, energy=False)
    assert experiment.state == "stopped"
    assert experiment.ended_at is not None
    assert experiment.ended_at - START < 40_000.0


def test_over_a_restart_it_is_in_the_right_block() -> None:
    defined = definition(**{**GUARDED, "pairs": 8})
    experiment = Experiment(defined, START)
    rows = drive(experiment, START + 530.0)
    kept = json.loads(json.dumps(saved(experiment, START + 530.0)))
    back = resume(kept, START + 790.0)
    assert back.definition == defined
    assert saved(resume(kept, START + 530.0), START + 530.0)["live"] == kept["live"]
    now = START + 790.0
    block = back.schedule.block_at(now)
    assert block is not None
    assert (back.status(now)["block"], back.arm_at(now)) == (block.number, block.arm)
    assert list(back.live) == list(experiment.live)
    rows += drive(back, START + 3000.0, seed=9)
    assert back.state == "finished"
    assert sorted(row.number for row in rows) == list(range(-1, 16)), "each once, also those that nobody watched"
    marked = {row.number for row in rows if "gateway_restart" in row.marks}
    assert marked == {4, 5, 6}
    assert [guard.pairs for guard in back.guards] == [guard.pairs for guard in back.guards]


def test_a_clock_that_went_back_while_it_was_away_does_not_repeat_blocks() -> None:
    experiment = Experiment(definition(pairs=6), START)
    drive(experiment, START + 530.0)
    back = resume(saved(experiment, START + 530.0), START - 9000.0)
    assert back.now == START + 530.0
    (row,) = (row for row in back.tick(START + 640.0) if row.number == 4)
    assert set(row.marks) >= {"gateway_restart", "clock_jump"}


def test_one_that_was_stopped_stays_stopped() -> None:
    experiment = Experiment(definition(), START)
    experiment.stop(START + 150.0, "by hand")
    back = resume(json.loads(json.dumps(saved(experiment, START + 200.0))), START + 210.0)
    assert (back.state, back.stopped_why, back.tick(START + 300.0)) == ("stopped", "by hand", [])


@pytest.mark.parametrize("damage", ["version", "rows", "guards"])
def test_damaged_state_is_refused(damage: str) -> None:
    experiment = Experiment(definition(**GUARDED), START)
    experiment.tick(START)
    state = saved(experiment, START)
    if damage == "version":
        state["joulegate_experiment"] = 99
    elif damage == "rows":
        state["rows"] = [{"number": 0}]
    else:
        state["guards"] = []
    with pytest.raises(ExperimentError):
        resume(state, START)


def test_tables_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.experiments.experiment.LIVE_MAX", 100)
    monkeypatch.setattr("scheduler.experiments.rows.TIMES_MAX", 50)
    experiment = Experiment(definition(), START)
    block = experiment.schedule.block(0)
    for number in range(150):
        experiment.assign(f"wf-{number}", block.measured_from)
    assert (len(experiment.live), experiment.forgotten) == (100, 50)
    for number in range(150):
        experiment.record(WorkflowOutcome(f"wf-{number}", float(number), block.measured_from + 1.0))
    (row,) = (row for row in experiment.tick(block.end + 21.0) if row.number == 0)
    assert (row.timed, len(row.workflow_seconds)) == (100, 50)
    assert max(row.workflow_seconds) > 120
    assert min(row.workflow_seconds) < 80, "a fair sample, neither the first nor the last"


def test_status_says_where_it_is() -> None:
    experiment = Experiment(definition(ramp_up=(0.5,)), START)
    experiment.tick(START)
    assert experiment.status(START + 1.0)["lead_in"]
    told = experiment.status(experiment.schedule.block(0).start + 5.0)
    assert (told["block"], told["in_washout"], told["ramp_up"]) == (0, True, True)
    assert told["seconds_to_next_block"] == pytest.approx(95.0)
    assert json.dumps(told)
    assert isinstance(experiment.definition, Definition)
