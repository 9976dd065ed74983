"""Bursts and runs of `twin-live`: what is sent, what is noted, what the twin plays again."""

from __future__ import annotations

import argparse
import random
from typing import Any

import pytest

from backends.twin import calibration as calibrations
from backends.twin.cost import Batch, CostModel
from bench.twin import live, probe, rows
from bench.twin.burst import Burst, figures
from bench.twin.crowd import CALL_COLUMNS, Crowd, Rule, Run
from bench.twin.lab import Lab
from bench.twin.row_models import check_rows
from bench.twin.wire import TOKEN_IDS, ids_of
from workloads.shapes import Part, stream

H200 = calibrations.load("h200-llama-3.1-8b")


def _burst_row(burst: Burst, **more: Any) -> dict[str, Any]:
    return {"kind": "burst", **burst._asdict(), "written_s": [0.001 * n for n in range(burst.n)], **more}


def _played(burst: Burst, **more: Any) -> dict[str, Any]:
    row = _burst_row(burst, **more)
    check_rows([row], "here")
    ((_, found),) = rows.predict([row], H200)
    return found


def _run_of_crowd(lab: Lab, run: Run) -> Crowd:
    crowd = Crowd(rows._Stage(lab), run, H200)
    lab.run()
    assert crowd.done
    return crowd


def test_equal_texts_are_equal_tokens_in_range() -> None:
    ids = [int(each) for each in ids_of(Part("a", 500)).split(b",")]
    assert ids_of(Part("a", 500)) == ids_of(Part("a", 500)) != ids_of(Part("b", 500))
    assert len(ids) == 500
    assert all(TOKEN_IDS[0] <= each < TOKEN_IDS[1] for each in ids)


def test_a_step_with_prompt_tokens_takes_at_least_what_the_host_needs() -> None:
    slow = H200.model_copy(update={"engine": H200.engine.model_copy(update={"prompt_step_seconds": 0.02})})
    costs, limit = CostModel(slow), 700.0
    assert costs.step(Batch(prefill=16), limit).seconds == 0.02
    assert costs.step(Batch(decode=8, context=4000, prefill=16), limit).seconds == 0.02
    assert costs.step(Batch(decode=8, context=4000), limit).seconds < 0.01
    assert costs.step(Batch(prefill=4096), limit) == CostModel(H200).step(Batch(prefill=4096), limit)
    # The work is the same: only idle power is added while the host is waited for.
    fast = CostModel(H200).step(Batch(prefill=16), limit)
    step = costs.step(Batch(prefill=16), limit)
    more = step.seconds * step.watts - fast.seconds * fast.watts
    assert more == pytest.approx((step.seconds - fast.seconds) * H200.card.idle_watts)


def test_every_call_of_a_run_is_noted() -> None:
    crowd = _run_of_crowd(Lab(H200), Run("chain", 4.0, 10.0, 3, Rule(3.0)))
    assert len(crowd.calls) == crowd.summary(1.0, crowd.stage.now)["calls"] > 20
    for row in crowd.calls:
        call: dict[str, Any] = dict(zip(CALL_COLUMNS, row, strict=True))
        assert call["ready_s"] <= call["sent_s"] <= call["written_s"] < call["first_token_s"] < call["ended_s"]
        assert 0 <= call["cached_tokens"] < call["prompt_tokens"]
    assert any(row[5] > row[4] for row in crowd.calls)  # held


def test_equal_salts_find_their_prompts_in_the_cache() -> None:
    lab = Lab(H200)
    cached = []
    for salt in ("", "", "other"):
        crowd = _run_of_crowd(lab, Run("chain", 4.0, 5.0, 3, Rule(), salt))
        cached.append(sum(row[-1] or 0 for row in crowd.calls))
    first, again, other = cached
    assert again > 10 * first
    assert other == first


def test_a_run_comes_back_from_its_row() -> None:
    for run in (Run("chain", 4.0, 5.0, 3, Rule(3.0), "x 1"), Run("chain", 4.0, 5.0, 3, Rule())):
        row = _run_of_crowd(Lab(H200), run).summary(1.0, 10.0)
        check_rows([row], "here")
        assert Run.of(row) == run


def test_bursts_on_the_twin() -> None:
    alone, cached = _played(Burst(1, 2048)), _played(Burst(1, 2048, cached=True))
    assert alone["ttft_mean_s"] > 0.03 > cached["ttft_mean_s"]
    shared, own = _played(Burst(8, 2048, shared_tokens=1024)), _played(Burst(8, 2048))
    assert shared["ttft_last_s"] < 0.7 * own["ttft_last_s"]
    assert len(own["ttft_s"]) == len(own["end_s"]) == 8
    beside = _played(Burst(1, 1024, background=4, idle_s=0.3), background_generated=50)
    assert 0.02 < beside["stall_s"] < 0.05


def test_a_burst_row_needs_a_time_for_each_call() -> None:
    with pytest.raises(Exception, match="written_s"):
        check_rows([_burst_row(Burst(2, 64)) | {"written_s": [0.0]}], "here")


def test_figures_of_a_burst() -> None:
    assert set(figures(Burst(1, 64), [0.1], [0.2], [])) == {"ttft_mean_s", "makespan_s"}
    found = figures(Burst(2, 64, background=1), [0.1, 0.3], [0.4, 0.5], [-0.01, 0.0, 0.2, 0.25, 0.9])
    assert found["stall_s"] == pytest.approx(0.2)
    assert found["ttft_first_s"] == 0.1
    assert found["ttft_last_s"] == 0.3


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    live.add_options(parser)
    return parser.parse_args([*words, "--out", "x.json"])


def test_the_plan_has_each_run_with_each_seed_in_each_repeat() -> None:
    plan = live._plan(_arguments("probe:ladder", "chain:4", "chain:4:3", "--seed", "3,4", "--repeats", "2"))
    assert len(plan) == 2 * (1 + 2 * 2)
    runs = [each for each in plan if isinstance(each, Run)]
    assert [run.seed for run in runs[:4]] == [3, 3, 4, 4]
    assert len({run.salt for run in runs}) == len(runs)
    same = live._plan(_arguments("chain:4", "chain:4:3", "--same-prompts"))
    assert {each.salt for each in same if isinstance(each, Run)} == {""}


@pytest.mark.parametrize("words", [["probe:none"], ["nothing:4"], ["chain:x"], ["chain:4", "--seed", "a"]])
def test_a_plan_that_cannot_be(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"runs|--seed"):
        live._plan(_arguments(*words))


def test_prompts_are_made_before_a_run() -> None:
    ids_of.cache_clear()
    run = Run("chain", 4.0, 5.0, 3, Rule(), "ready")
    live._make_ready(run)
    made = ids_of.cache_info().misses
    for part in run.prompt(next(stream("chain", random.Random(3))).calls[0]):
        ids_of(part)
    assert ids_of.cache_info().misses == made > 20


def test_probes_are_played_on_the_twin_as_they_are() -> None:
    for bursts in probe.PROBES.values():
        check_rows([_burst_row(burst) for burst in bursts], "here")
