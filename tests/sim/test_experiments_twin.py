"""Experiments on the twin in virtual time: whole runs, blocks of a library, and what they are composed to."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.experiments.compose import Composer, SplitComposer
from bench.experiments.library import as_json, build, read
from bench.experiments.live import LiveRun, knows_late
from bench.experiments.naive import compare
from bench.experiments.simulated import covered, ever_excluded, false_positives, false_stops, power
from bench.experiments.stage import Shape
from scheduler.experiments import METRICS, TREATMENT, Arm, Definition, guardrail_of
from scheduler.experiments.marks import pairs_of

SHAPE = Shape(block_seconds=60.0, washout_seconds=10.0)
ARMS = (Arm("passthrough"), Arm("fifo", {"max_in_flight": 3}))


def run(seed: int = 1, **changes: object) -> LiveRun:
    values: dict[str, object] = {
        "id": "run", "arms": ARMS, "block_seconds": 60.0, "washout_seconds": 10.0, "pairs": 6, "seed": seed,
    }  # fmt: skip
    return LiveRun(Definition(**{**values, **changes}), SHAPE, f"seed {seed}", lambda now: 1.6, 1.6).run()  # type: ignore[arg-type]


def test_a_run_on_the_twin_has_all_its_blocks_and_joules() -> None:
    ran = run()
    assert ran.experiment.state == "finished"
    pairs, left = pairs_of(ran.rows, METRICS["joules_per_workflow"])
    assert (len(pairs), [row.number for row in left]) == (6, [-1])
    assert {row.energy_source for row in ran.rows} == {"simulated"}
    # Every joule of the card in a measured part is some block's; the wash-outs' are nobody's.
    measured = sum(row.gpu_joules or 0.0 for row in ran.rows)
    assert 0.5 * ran.stage.engine.meter.joules < measured < ran.stage.engine.meter.joules
    slow = np.mean([row.seconds / row.timed for pair in pairs for row in pair.treatment])
    fast = np.mean([row.seconds / row.timed for pair in pairs for row in pair.control])
    assert slow > 1.2 * fast
    assert [row.as_json() for row in run().rows] == [row.as_json() for row in ran.rows], "the same seed, the same run"


def test_a_harmful_treatment_is_stopped_and_all_calls_go_on() -> None:
    knows_late()
    ran = run(2, arms=(Arm("passthrough"), Arm("late", {"hold_ms": 3000})),
              guardrails=(guardrail_of("p95_workflow_seconds:+5%"),))  # fmt: skip
    experiment = ran.experiment
    assert experiment.state == "stopped"
    block = next(block for block in map(experiment.schedule.block, (0, 1)) if block.arm == TREATMENT)
    assert experiment.ended_at is not None
    assert experiment.ended_at - block.start <= 60.0
    ended = ran.stage.world.time.now
    ran.stage.run(ended + 20.0)
    recent = [each for each in ran.stage.player.played if each.arrived_at > ended]
    assert recent
    assert all(each.refused == 0 for each in recent)
    assert np.median([each.seconds for each in recent]) < 1.5, "no call waits any more"


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(build(SHAPE, (ARMS[0], Arm("fifo", {"max_in_flight": 4})), (0.8, 1.6), 8, 1))


def test_the_library_knows_what_both_arms_do_to_the_same_arrivals(
    composer: Composer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for item in composer.library.items:
        rows = [row for after in item.rows for row in after]
        assert len({row.began for row in rows}) == 1
        assert {row.offered_tokens for row in rows if not row.unfinished} == {rows[0].offered_tokens}
    path = tmp_path_factory.mktemp("library") / "blocks.json"
    path.write_text(json.dumps(as_json(composer.library)))
    assert read(path) == composer.library
    path.write_text("{}")
    assert read(path) is None


def test_composed_experiments_see_what_was_played(composer: Composer) -> None:
    made = composer.compose(10, 3, "diurnal")
    seen, rows = composer.seen(made), composer.rows(made)
    assert [row.number for row in rows] == list(range(20))
    for pair, (control, treatment) in enumerate(seen.joules):
        by_arm = {row.arm: row.gpu_joules for row in rows if row.pair == pair}
        assert by_arm == {0: control, 1: treatment}
    same = composer.compose(10, 3, "diurnal", aa=True)
    assert (same.arms == made.arms).all()
    assert composer.true_effect(made) == pytest.approx(composer.true_differences(made).mean(), abs=0.05)


def test_a_weakened_treatment_has_a_part_of_the_effect(composer: Composer) -> None:
    for one in (composer, SplitComposer(composer.library)):
        made = one.compose(200, 3, "diurnal")
        effects = [one.weakened(share).true_effect(made) for share in (0.0, 0.5, 1.0)]
        assert effects[0] == 0.0 and effects[2] == one.true_effect(made)
        assert effects[1] == pytest.approx(effects[2] / 2, rel=0.1)


def test_error_rates_of_a_few_hundred_experiments(composer: Composer) -> None:
    """Loosely: `joulegate-bench experiments` has thousands of them."""
    tested, interval = false_positives(composer, "diurnal", 200, 16, 1)
    assert tested.share <= 0.11
    assert interval.share <= 0.12
    assert ever_excluded(composer, "stationary", 100, 60, 1, aa=False)[0].share <= 0.05
    assert covered(composer, "diurnal", 200, 16, 1).share >= 0.88
    assert 0.6 <= power(composer, "stationary", 60, 1).found.share <= 0.97
    assert false_stops(composer, "diurnal", 5, 40, 1, ARMS).found == 0


def test_a_coin_per_request_gets_it_wrong() -> None:
    found = compare(SHAPE, ARMS, 1.8, 300.0, "coin")
    assert found.true_joules > 0.02
    assert found.coin_joules == 0.0, "one meter"
    assert found.coin_seconds < 0.8 * found.true_seconds
