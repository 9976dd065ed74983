"""The overhead report: medians, ratios, verdicts, and what it says when a figure is missing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from bench import overhead_report
from bench.overhead import SCENARIOS, peer_names, pick_cores, write_bodies
from bench.overhead_report import PEAK, PLAIN, PROMPT, RATE, ROWS, STREAM, Report
from bench.programs import BenchError


def one_run(cpu_ms: float, peak_mib: float) -> dict[str, Any]:
    figures = {"cpu_ms": cpu_ms, "p50_ms": cpu_ms * 2, "p99_ms": cpu_ms * 4}
    stream = figures | {"cpu_us_token": cpu_ms * 500, "chunk_p50_ms": cpu_ms, "chunk_p99_ms": cpu_ms * 9}
    return {PLAIN: figures, PROMPT: figures, RATE: figures, STREAM: stream, "peak_mib": peak_mib}


@pytest.fixture
def report() -> Report:
    runs = {
        "nginx": [one_run(0.03, 14)] * 3,
        "vllm-router": [one_run(0.10, 110)] * 3,
        "joulegate": [one_run(cpu_ms, 60) for cpu_ms in (0.05, 0.9, 0.04)],
    }
    versions = dict.fromkeys(runs, "1")
    return Report("2026-01-02", "a CPU", "joulegate-bench overhead", versions, 3, runs, failures={}, left_out={})


def verdict_of(report: Report, row: str, level: str) -> dict[str, Any]:
    (found,) = (v for v in overhead_report.verdicts(report) if v["row"] == row and v["level"] == level)
    return found


def test_scenarios_are_those_of_the_rows() -> None:
    assert [scenario.name for scenario in SCENARIOS] == [PLAIN, PROMPT, RATE, STREAM]


def test_median_and_ratios(report: Report) -> None:
    assert (
        overhead_report.cell(report, "joulegate", f"CPU ms a request, {PLAIN}") == "0.050 (1.67x nginx, 0.50x router)"
    )
    assert overhead_report.cell(report, "nginx", f"CPU ms a request, {PLAIN}") == "0.030 (0.30x router)"
    assert overhead_report.cell(report, "joulegate", PEAK) == "60"


def test_verdicts(report: Report) -> None:
    assert verdict_of(report, f"CPU ms a request, {PLAIN}", "must")["met"] is True
    assert verdict_of(report, f"CPU ms a request, {PLAIN}", "aim")["met"] is True
    assert verdict_of(report, f"CPU us a token, {STREAM}", "aim")["met"] is False
    assert verdict_of(report, PEAK, "must")["met"] is True
    assert verdict_of(report, PEAK, "aim")["met"] is False


def test_a_missing_peer_is_said_and_judges_nothing(report: Report) -> None:
    runs = {name: runs for name, runs in report.runs.items() if name != "nginx"}
    without = dataclasses.replace(report, runs=runs, left_out={"nginx": "nginx is not installed: install nginx-light"})
    assert verdict_of(without, f"p50 ms, {RATE}", "must")["met"] is None
    text = overhead_report.render(without)
    assert "- nginx is left out: nginx is not installed" in text
    assert f"- not judged: p50 ms, {RATE}: must <= 2 x nginx" in text


def test_a_proxy_that_failed_once_has_no_figures(report: Report) -> None:
    failed = dataclasses.replace(report, failures={"joulegate": ["3 of 9 answers wrong"]})
    text = overhead_report.render(failed)
    assert f"| {PEAK} | 14 | 110 | failed |" in text
    assert "- joulegate failed in 1 of 3 passes: 3 of 9 answers wrong" in text
    assert all(verdict["met"] is None for verdict in overhead_report.verdicts(failed))


def test_json_has_runs_and_medians(report: Report) -> None:
    told = json.loads(json.dumps(overhead_report.as_json(report)))
    assert set(told["medians"]["joulegate"]) == set(ROWS)
    assert told["medians"]["joulegate"][PEAK] == 60
    assert len(told["runs"]["joulegate"]) == 3


def test_one_core_is_refused() -> None:
    with pytest.raises(BenchError, match="needs 2 CPU cores"):
        pick_cores({3})
    assert pick_cores({5, 2, 9}) == (2, 5)


def test_unknown_peer_is_refused() -> None:
    assert peer_names("nginx, vllm-router") == ["nginx", "vllm-router"]
    assert peer_names("") == []
    with pytest.raises(Exception, match=r"unknown peer 'envoy'; known are nginx, vllm-router"):
        peer_names("nginx,envoy")


def test_bodies_have_their_sizes(tmp_path: Any) -> None:
    write_bodies(tmp_path)
    plain, long = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "plain_32k"))
    assert [len(message["content"]) for message in plain["messages"]] == [300, 700]
    assert len(long["messages"][1]["content"]) == 32000
