"""`joulegate-bench characterize`: what it plays, what it says of the six findings, what it does not do twice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.load import study
from bench.load.figures import Interval
from bench.load.findings import Study, findings, r_squared
from bench.load.hypotheses import CLAIMS, HOLDS, NOT, OPEN, all_of, any_of, below, inside, verdict
from bench.load.report_data import Run
from bench.load.spec import Spec, of
from bench.load.study import POLICIES, WORKLOADS, Size, size_of, sweep_text
from bench.load.sweep_file import read_sweep
from bench.programs import BenchError

TINY = Size(2, 3.0, 0.0, 2, {"chain": 3}, (1, 2), (0.0,), (0.5, 2.0), {})


def cells(folder: Path, text: str) -> tuple[Spec, ...]:
    path = folder / "c.toml"
    path.write_text(text)
    return read_sweep(path).cells


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("engine", ["twin", "twin:h100-llama-3.1-8b", "http://127.0.0.1:1"])
def test_the_study_is_a_sweep_that_anybody_can_play(tmp_path: Path, engine: str, quick: bool) -> None:
    found = cells(tmp_path, sweep_text(size_of(engine, quick=quick), engine, WORKLOADS, POLICIES, {"seed": 3}))
    assert {spec.workload for spec in found} == set(WORKLOADS) and {spec.policy for spec in found} == set(POLICIES)
    assert {spec.seed for spec in found} == {3} and {spec.engine for spec in found} == {engine}
    # vLLM as it is hears nothing of workflows; limits of a real card are never set.
    assert all(spec.way == ("hinted" if spec.policy == "none" else "native") for spec in found)
    assert any(spec.cap_watts for spec in found) == engine.startswith("twin")
    for spec in found:  # each beside vLLM as it is, over the same load and the same limits
        if spec.policy != "none":
            assert replace(spec, policy="none", way="hinted", tell_lengths=False) in found


def test_a_trace_has_batches_caps_and_deadlines_but_no_other_lengths(tmp_path: Path) -> None:
    text = sweep_text(size_of("twin", quick=True), "twin", ("trace",), POLICIES, {"trace": "t.jsonl"})
    found = cells(tmp_path, text)
    assert {spec.trace for spec in found} == {"t.jsonl"} and {spec.arrivals for spec in found} == {"closed", "trace"}
    assert len({spec.in_flight for spec in found}) > 2 and any(spec.cap_watts for spec in found)
    assert {spec.input_scale for spec in found} == {1.0} == {spec.output_scale for spec in found}


def test_an_unknown_calibration_is_said() -> None:
    with pytest.raises(BenchError, match="--engine twin:none"):
        sweep_text(size_of("twin:none", quick=True), "twin:none", WORKLOADS, POLICIES, {})


def test_the_page_has_the_study_first_and_a_second_run_plays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "QUICK", TINY)
    command = ["characterize", "--quick", "--workload", "chain", "--preset", "cpu", "--workers", "2",
               "--output", str(tmp_path)]  # fmt: skip
    assert main([*command, "--check"]) == 0
    assert "configurations" in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert main(command) == 0
    assert "report: " in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    titles = re.findall(r"<h2>([^<]*)</h2>", page)
    assert titles == ["What a workflow costs", "Six findings, tested", "About these results", "chain", "Ratios",
                      "All figures"]  # fmt: skip
    assert all(f'id="finding-{number}"' in page for number in range(1, 7))
    assert page.count("unavailable") > 6  # joules of processors and memory, in every row
    for name in ("chain-batch-1", "chain-cap-1", "chain-input-1", "chain-output-1", "finding-1-plot", "finding-6-plot"):
        assert (tmp_path / "report" / f"{name}.png").exists(), name
    assert main(command) == 0
    said = capsys.readouterr().out
    total = re.search(r"(\d+) configurations, (\d+) of them there already", said)
    assert total is not None and total[1] == total[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workload", "codng"], "workload: no 'codng'; did you mean 'coding'?"),
        (["--policy", "jule"], "did you mean 'joule'?"),
        (["--engine", "twn"], "engine: must be twin, twin:CALIBRATION or a URL"),
        (["--repeats", "0"], "repeats: must be a whole number from 1"),
        (["--trace", "t.jsonl", "--workload", "chain"], "of one or the other"),
        (["--trace", "t.jsonl"], "t.jsonl"),
        (["--engine", "http://127.0.0.1:1"], "nobody answers"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["characterize", "--quick", "--output", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


def run(joules: float, seconds: float = 10.0, missed: float = 0.0, **spec: Any) -> Run:
    """Three repeats, of 100 output tokens times the scale; joules of a workflow."""
    usual = {"workload": "chain", "arrivals": "closed", "users": 16, "in_flight": 16, "policy": "none"}
    full = of({**usual, **spec})
    tokens = 100.0 * full.output_scale
    figures = {
        repeat: {"joules_per_workflow": joules * repeat, "joules_per_output_token": joules * repeat / tokens,
                 "workflow_p50_s": seconds, "missed_share": missed, "mean_running": 4.0, "busy_share": 0.5,
                 "output_tokens_per_workflow": tokens, "cached_share": 0.1}
        for repeat in (1, 2, 3)
    }  # fmt: skip
    rows = {
        repeat: {"repeat": repeat, "complete": True, "good_workflows": 1, "gpu_joules": joules * repeat,
                 "ended_s": 100.0, "idle_watts": 1.0, "prompt_tokens": 1000, "output_tokens": 100}
        for repeat in (1, 2, 3)
    }  # fmt: skip
    return Run(_Made(rows, full.document()), full.document(), figures, rows)  # type: ignore[arg-type]


def replace_repeats(full: Run) -> Run:
    """The first of its repeats alone."""
    rows = {1: dict(full.rows[1])}
    return Run(_Made(rows, dict(full.spec)), full.spec, {1: full.repeats[1]}, rows)  # type: ignore[arg-type]


class _Made:
    """As a result that was read, as far as ratios look at it."""

    def __init__(self, rows: dict[int, dict[str, Any]], spec: dict[str, Any]) -> None:
        self.meta = {"spec": spec, "time_source": "simulated"}
        self._rows = rows

    def rows(self, kind: str) -> Any:
        assert kind == "repeat"

        class Table:
            @staticmethod
            def to_pylist() -> list[dict[str, Any]]:
                return list(self._rows.values())

        return Table


def verdicts(runs: list[Run]) -> dict[int, str]:
    return {each.number: each.verdict for each in findings(Study(runs))}


def test_findings_hold_by_their_rules() -> None:
    runs = []
    for workload, one, alone in (("chain", 100.0, 100.0), ("copilot", 300.0, 100.0), ("coding", 120.0, 110.0)):
        # The smallest batch costs `one`; with one user alone `alone`. Caps save a tenth, lengths are linear.
        runs += [run(100.0, workload=workload), run(one, workload=workload, in_flight=1)]
        runs += [run(alone, workload=workload, in_flight=1, users=1), run(100.0, workload=workload, users=1)]
        runs += [run(90.0, workload=workload, cap_watts=300)]
        runs += [run(100.0 * scale, workload=workload, output_scale=scale) for scale in (0.5, 2.0)]
        opened = {"workload": workload, "arrivals": "poisson", "cap_watts": 300}
        runs += [run(100.0, **opened), run(80.0, policy="joule", way="native", **opened)]
    found = verdicts(runs)
    assert (found[2], found[3], found[4], found[5], found[6]) == (HOLDS, HOLDS, HOLDS, OPEN, HOLDS)
    # Where a cap does as much as the batch, the batch is no longer the strongest lever: of chain it moves nothing.
    assert found[1] == "in part: batch first in 2 of 3"


def test_findings_do_not_hold_by_their_rules() -> None:
    runs = []
    for workload in ("chain", "copilot", "coding"):
        runs += [run(100.0, workload=workload), run(400.0, workload=workload, in_flight=1)]
        runs += [run(100.0, workload=workload, users=1), run(100.0, workload=workload, users=1, in_flight=1)]
        runs += [run(50.0, workload=workload, cap_watts=300)]
        runs += [run(joules, workload=workload, output_scale=scale) for joules, scale in ((300.0, 0.5), (120.0, 2.0))]
        opened = {"workload": workload, "arrivals": "poisson", "cap_watts": 300}
        runs += [run(100.0, **opened), run(80.0, missed=0.2, policy="joule", way="native", **opened)]
    found = verdicts(runs)
    assert found[2] == "in part: copilot pays: yes, chain does not: no, coding in between: no"
    assert found[3] == "in part: modest in 0 of 3, predictable in 3 of 3"
    assert (found[4], found[6]) == (NOT, NOT)  # joules that tokens do not move; deadlines paid for the joules


def test_what_was_not_played_is_not_judged() -> None:
    found = verdicts([run(100.0, workload="chat"), run(300.0, workload="chat", in_flight=1)])
    assert set(found.values()) == {OPEN}


CLOSE, WIDE = Interval(0.8, 0.78, 0.82, 3), Interval(0.8, 0.6, 1.0, 3)


def test_a_test_is_passed_by_the_whole_interval_and_failed_by_the_mean() -> None:
    assert inside(CLOSE, 0.75, 0.95) is True and inside(WIDE, 0.75, 0.95) is None
    assert inside(CLOSE, high=0.7) is False is inside(WIDE, high=0.7)
    assert inside(Interval(0.8, None, None, 1), 0.75, 0.95) is True  # one repeat: the mean decides
    assert inside(Interval(None, None, None, 0)) is None
    assert below(Interval(None, None, None, 0), CLOSE) is None is below(CLOSE, Interval(None, None, None, 0))
    assert below(CLOSE, Interval(0.9, 0.89, 0.91, 3)) is True and below(CLOSE, CLOSE) is False
    assert below(CLOSE, Interval(0.81, 0.8, 0.82, 3)) is None
    assert (all_of(True, None), all_of(None, False), all_of()) == (None, False, True)
    assert (any_of(False, None), any_of(None, True), any_of()) == (None, True, False)


@pytest.mark.parametrize(
    ("modest", "predictable", "said"),
    [
        ({}, {}, OPEN),
        ({"a": True}, {"a": True}, HOLDS),
        ({"a": True, "b": None}, {"a": True, "b": True},
         "in part: modest in 1 of 2 (1 undecided), predictable in 2 of 2"),
        ({"a": True}, {}, "in part: modest: yes, predictable (not tested)"),
        ({"a": False, "b": None}, {"a": False}, NOT),
        ({"a": None}, {"a": None}, f"{OPEN}: the intervals are too wide"),
    ],
)  # fmt: skip
def test_one_rule_judges_every_finding(
    modest: dict[str, bool | None], predictable: dict[str, bool | None], said: str
) -> None:
    found = {"modest": modest, "predictable": predictable}
    assert verdict(CLAIMS[2], {says: each for says, each in found.items() if each}) == said


def test_one_repeat_is_not_called_predictable() -> None:
    once = [replace_repeats(run(joules, cap_watts=cap)) for joules, cap in ((100.0, None), (90.0, 300))]
    assert verdicts(once)[3] == "in part: modest: yes, predictable: undecided"


def test_r_squared_is_of_the_least_squares_line() -> None:
    assert r_squared([(1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]) == pytest.approx(1.0)
    assert r_squared([(1.0, 0.0), (2.0, 1.0), (3.0, 0.0)]) == pytest.approx(0.0)
