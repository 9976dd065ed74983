"""Two results are compared pair by pair; unlike work is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.load.compare import check, compare, equal_horizon, side
from bench.load.results import Result, Writer, read
from bench.load.spec import Spec, of

IDLE = 100.0


def result(path: Path, factor: float, *, changes: dict[str, Any] | None = None, **spec: Any) -> Result:
    """Three repeats; times and joules of A times `factor`."""
    document = of({"policy": "fifo", "workload": "chat", **spec}).document()
    writer = Writer(path, {"spec": document, "time_source": "simulated", "energy": {"source": "simulated"}})
    for repeat in (1, 2, 3):
        ended = 100.0 * repeat * factor
        whole = {
            "repeat": repeat, "ended_s": ended, "complete": True, "prompt_tokens": 1000, "output_tokens": 500,
            "gpu_joules": 1000.0 * repeat, "idle_watts": IDLE, "good_workflows": 2, "generating_s": ended / 2,
            **(changes or {}),
        }  # fmt: skip
        workflows = [
            {
                "repeat": repeat,
                "workflow": f"w{n}",
                "seconds": (1.0 + n) * factor,
                "good": True,
                "missed": n < factor - 1,
            }
            for n in range(2)
        ]
        calls = [{"repeat": repeat, "intended_s": 0.0, "first_token_s": 0.5 * factor, "good": True}]
        writer.add({"repeat": [whole], "workflow": workflows, "call": calls})
        writer.figures[repeat] = {}
    writer.write(state="complete")
    return read(writer.path)


def test_ratios_are_paired_and_over_equal_horizons(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a", 1.0), result(tmp_path / "b", 2.0)
    common = check(a, b)
    found = {each.name: each for each in compare(side(a, common), side(b, common))}
    assert common == [1, 2, 3]
    # In A's shorter plays the card idles for the rest: 1000 r + 100 W × 100 r s, against 1000 r.
    joules = found["J/workflow, equal horizons"]
    assert joules.change.mean == pytest.approx(1 / 11) and joules.change.low == pytest.approx(1 / 11)
    pairs = found["workflow time, pair by pair"]
    assert pairs.change.mean == pytest.approx(2.0) and pairs.change.high == pytest.approx(2.0)
    assert found["workflow p50"].change.mean == pytest.approx(2.0)
    assert found["TTFT p50"].change.mean == pytest.approx(2.0)
    assert found["output tokens/s, whole play"].change.mean == pytest.approx(0.5)
    missed = found["deadlines missed"]
    assert (missed.a, missed.b, missed.change.mean) == (0.0, 0.5, 0.5) and not missed.is_ratio


def test_a_horizon_without_known_idle_power_has_no_joules() -> None:
    short = {"ended_s": 5.0, "gpu_joules": 10.0, "idle_watts": None}
    long = {"ended_s": 6.0, "gpu_joules": 20.0, "idle_watts": None}
    assert equal_horizon(short, long) == (None, 20.0)
    assert equal_horizon(short, short) == (10.0, 10.0)
    assert equal_horizon(short | {"idle_watts": 3.0}, long) == (13.0, 20.0)


@pytest.mark.parametrize(
    ("changes", "spec", "words"),
    [
        ({"output_tokens": 506}, {}, "unlike work: in repeat 1 A has 500 output_tokens and B 506"),
        ({"prompt_tokens": 980}, {}, "unlike work"),
        ({"output_tokens": None}, {}, "are not known of both"),
        ({}, {"rate": 9.0}, "different loads, so nothing is paired (rate: 4.0 and 9.0)"),
        ({}, {"seed": 2}, "different loads"),
        ({"complete": False}, {}, "no repeat was played to its end in both"),
    ],
)
def test_unlike_work_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], spec: dict[str, Any], words: str
) -> None:
    a, b = result(tmp_path / "a", 1.0), result(tmp_path / "b", 1.0, changes=changes, **spec)
    assert main(["compare", str(a.path), str(b.path)]) == 2
    assert words in capsys.readouterr().err


def test_what_differs_by_less_than_a_hundredth_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = result(tmp_path / "a", 1.0), result(tmp_path / "b", 1.0, changes={"output_tokens": 504}, in_flight=3)
    figures = tmp_path / "figures.json"
    assert main(["compare", str(a.path), str(b.path), "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    assert "fifo in_flight=None" in said and "fifo in_flight=3" in said and "3 paired repeats" in said
    assert '"J/workflow, equal horizons"' in figures.read_text()


def test_figures_that_cannot_be_written_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = result(tmp_path / "a", 1.0)
    assert main(["compare", str(a.path), str(a.path), "--json", str(tmp_path / "no" / "c.json")]) == 2
    assert "--json" in capsys.readouterr().err


def test_unmeasured_energy_is_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = result(tmp_path / "a", 1.0, changes={"gpu_joules": None})
    assert main(["compare", str(a.path), str(a.path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("J/workflow"))
    assert line.count("unavailable") == 2


def test_the_usual_configuration_has_a_name() -> None:
    assert Spec().name == "composite_passthrough"
