"""The report of results: baselines and their intervals, the critical path, a page that asks the network for nothing."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.load.drawing import FEW, draw
from bench.load.figures import Interval
from bench.load.report import load
from bench.load.report_data import AXES, Run, against, at, front, series, words
from bench.load.report_plots import Point, Spot, pareto, together
from bench.load.report_ratios import baseline_of, ratio
from bench.load.report_times import arms, critical_path, lanes, time_lines
from bench.load.results import Writer, read

SWEEP = """\
workload = "chain"
preset = "cpu"
seconds = 6
warm_up_seconds = 0
repeats = 2
rate = 3
[[grid]]
policy = ["none", "fifo"]
in_flight = [1, 4]
[[grid]]
policy = ["joule"]
in_flight = [4]
stretch = [8]
way = ["native"]
tell_lengths = [true]
[[grid]]
policy = ["none"]
in_flight = [4]
cap_watts = [300]
[[grid]]
policy = ["none"]
in_flight = [4]
"parameters.summary_tokens" = [60]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("results")
    (found / "s.toml").write_text(SWEEP)
    assert main(["sweep", str(found / "s.toml"), "--out", str(found / "out"), "--workers", "1"]) == 0
    return found / "out"


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Run]:
    return load([folder])


def one(runs: list[Run], **spec: Any) -> Run:
    wanted = {"cap_watts": None, "parameters": {}, **spec}
    (found,) = [run for run in runs if all(run.spec[name] == value for name, value in wanted.items())]
    return found


def test_the_page_needs_no_network_and_says_what_is_to_be_known(folder: Path, tmp_path: Path) -> None:
    assert main(["report", str(folder), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    links = re.findall(r'(?:src|srcset|href)="([^"]*)', page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert all(f'id="{link[1:]}"' in page for link in links if link.startswith("#"))
    assert "there is none with policy none" in page and "CPU unavailable" in page
    for name in ("pareto-1", "batch-1", "cap-1", "output-1", "time-line"):
        assert (tmp_path / f"chain-{name}.png").read_bytes().startswith(b"\x89PNG"), name


H200 = Path(__file__).parents[2] / "bench" / "results" / "h200-2026-11-25"


def test_what_was_measured_stands_beside_the_twins_prediction(tmp_path: Path) -> None:
    assert main(["report", str(H200), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert page.index('id="twin"') < page.index('id="ratios"') and "limits and clocks are read, never set" in page
    rows = json.loads((H200 / "beside.json").read_text())
    assert all(f"{row['joules_per_workflow']:,.1f}" in page for row in rows)
    assert {path.name for path in tmp_path.glob("*-beside.png")} == {f"{row['workload']}-beside.png" for row in rows}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"workload": "chain"}]'])
def test_other_figures_beside_results_are_refused(
    folder: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.glob("chain_none_*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "beside.json").write_text(text)
    code = main(["report", str(tmp_path), "--out", str(tmp_path / "page")])
    if text == "{}":  # of no play
        assert code == 0 and 'id="twin"' not in (tmp_path / "page" / "index.html").read_text()
    else:
        assert code == 2 and "beside.json: is not of joulegate-bench beside --json" in capsys.readouterr().err


def test_long_tables_are_not_printed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.load.report.ROWS_PRINTED", 3)
    assert main(["report", str(folder), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    for title in ("Ratios", "All figures"):
        chapter = page[page.index(f"<h2>{title}") :]
        assert chapter.index("<details open>") < chapter.index("<table>") < chapter.index('<p class="printed">')


def test_figures_are_the_same_from_one_process_or_several(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"joule": [Spot(Interval(1.0, 0.9, 1.1, 3), Interval(2.0, 1.9, 2.1, 3), True, "")]}
    drawings = [partial(pareto, points)] * (FEW + 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    one = draw(drawings[:1])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert draw(drawings) == one * len(drawings)


def test_a_baseline_is_the_plainest_policy_as_alike_as_can_be(runs: list[Run]) -> None:
    plain = one(runs, policy="none", in_flight=4)
    assert baseline_of(one(runs, policy="fifo", in_flight=1), runs) is one(runs, policy="none", in_flight=1)
    # It goes in another way and has deadlines, which is not another load.
    assert baseline_of(one(runs, policy="joule"), runs) is plain
    assert baseline_of(one(runs, policy="none", in_flight=1), runs) is plain
    assert baseline_of(one(runs, policy="none", cap_watts=300.0), runs) is plain
    assert baseline_of(plain, runs) is None
    longer = next(run for run in runs if run.spec["parameters"])
    assert baseline_of(longer, runs) is None  # nobody else played that
    named = one(runs, policy="fifo", in_flight=1)
    assert baseline_of(plain, runs, named) is named and baseline_of(longer, runs, named) is None


def test_ratios_are_paired_and_say_in_what_else_they_differ(runs: list[Run]) -> None:
    plain, capped = one(runs, policy="none", in_flight=4), one(runs, policy="none", cap_watts=300.0)
    found = ratio(capped, plain)
    assert found.differs == "cap 300 W" and not found.why
    assert found.joules.low is not None and found.joules.n == 2 and found.seconds.mean is not None
    same = ratio(plain, plain)
    assert same.joules == Interval(1.0, 1.0, 1.0, 2)


def test_unlike_work_has_no_ratio(folder: Path, tmp_path: Path, runs: list[Run]) -> None:
    result = one(runs, policy="fifo", in_flight=4).result
    writer = Writer(tmp_path / "longer", {k: v for k, v in result.meta.items() if k != "figures"})
    rows = result.rows("repeat").to_pylist()
    writer.add({"repeat": [{k: v for k, v in row.items() if k != "row"} | {"output_tokens": 1} for row in rows]})
    writer.figures = {int(k): v for k, v in result.meta["figures"].items()}
    writer.write()
    (other,) = load([tmp_path / "longer.parquet"])
    assert "unlike work" in ratio(other, one(runs, policy="none", in_flight=4)).why


def test_lengths_are_an_axis_in_tokens_however_they_were_set(runs: list[Run]) -> None:
    output = next(axis for axis in AXES if axis.name == "output")
    (group,) = against(output, runs)
    places = sorted({at(output, run) or 0 for run in group})
    assert len(places) == 2 and places[1] == pytest.approx(60) and 28 <= places[0] <= 32
    cap = next(axis for axis in AXES if axis.name == "cap")
    (capped,) = against(cap, runs)
    assert {at(cap, run) for run in capped} == {300.0, 700.0}  # without a cap it is the card's own


def test_policies_stand_in_one_order_and_the_same_with_other_options_apart(runs: list[Run]) -> None:
    assert list(series(runs)) == ["vLLM as is", "fifo", "joule"]
    assert words(one(runs, policy="joule"), ["policy", "in_flight", "stretch"]) == "joule, batch 4, deadline 8×"


def test_lines_that_coincide_are_drawn_as_one() -> None:
    def line(*values: float | None) -> dict[str, list[Point]]:
        return {"p": [Point(x, Interval(y, None, None, 1)) for x, y in enumerate(values)]}

    lines = {"a": line(1.0, 2.0), "b": line(1.001, 2.0), "c": line(1.0, 2.5), "d": line(1.0, None)}
    assert together(lines) == [["a", "b"], ["c"], ["d"]]


def test_a_front_is_what_nothing_beats_in_both() -> None:
    assert front([(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 2.0)]) == [1, 3, 0]


def test_the_critical_path_follows_the_last_answer() -> None:
    calls = [
        {"node": "a", "after": [], "ended_s": 1.0},
        {"node": "b", "after": [], "ended_s": 2.0},
        {"node": "c", "after": ["a", "b"], "ended_s": 3.0},
    ]
    assert critical_path(calls) == {"b", "c"}


def test_many_calls_share_rows_without_overlap() -> None:
    calls = [{"sent_s": x, "ended_s": x + 1.5} for x in range(6)]
    assert lanes(calls, 6) == [0, 1, 2, 3, 4, 5]
    assert lanes(calls, 5) == [0, 1, 0, 1, 0, 1]


def test_time_lines_are_of_the_same_workflow(runs: list[Run]) -> None:
    lines = time_lines(arms(runs))
    assert len(lines) > 1 and len({line.workflow for line in lines}) == 1
    assert all(line.watts and line.calls and line.critical for line in lines)


def test_results_without_a_whole_repeat_or_joules_are_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path, *_) = sorted(folder.glob("*fifo*.parquet"))
    meta = read(path).meta
    broken = Writer(tmp_path / "broken", {**meta, "figures": {}, "energy": {"source": "unavailable"}})
    broken.write(state="interrupted", state_detail="Ctrl-C after 0 of 2 repeats")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "not whole: Ctrl-C after 0 of 2 repeats" in page


@pytest.mark.parametrize("given", [[], ["--baseline", "none.parquet"]])
def test_what_cannot_be_reported_is_said(
    folder: Path, tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder if given else tmp_path
    assert main(["report", str(source), "--out", str(tmp_path / "page"), *given]) == 2
    assert ("cannot be read" if given else "no results") in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text(json.dumps({}))
    assert main(["report", str(folder), "--out", str(file)]) == 2
    assert "name a folder that can be written" in capsys.readouterr().err
