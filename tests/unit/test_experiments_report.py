"""From closed blocks to the answer: what is said, what is unavailable, and a page that needs nothing else."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.cli import main
from bench.experiments import files
from bench.experiments.pairs import differences, table_of
from scheduler.experiments import METRICS, BlockRow, Definition, guardrail_of
from scheduler.experiments.agreement import Agreement
from scheduler.experiments.saved import head
from tests.unit.experiment_rows import ARMS, definition, rows_of

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("statsmodels", reason="tests/requirements-dev.lock does not have it yet")

from bench.experiments.analyse import analyse, as_json
from bench.experiments.answer import sentence, time_text
from bench.experiments.page import page


def written(path: Path, defined: Definition, rows: list[BlockRow], *, last: bool = True) -> Path:
    lines = [head(defined, 1.75e9), *(row.as_json() for row in rows)]
    if last:
        lines.append({"ended_at": 1.0, "stopped_why": None, "shadow_dropped": None})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_effect_is_found_and_said_in_one_sentence() -> None:
    defined = definition(pairs=40)
    found = analyse(defined, rows_of(defined, effect=-0.15), draws=499)
    estimate = found.primary.estimate
    assert estimate is not None
    assert estimate.low < np.expm1(-0.15) < estimate.high < 0
    assert found.primary.always is not None
    assert found.primary.always[0] <= estimate.low
    assert found.primary.always[1] >= estimate.high
    said = sentence(found)
    assert re.fullmatch(
        r"fifo \(max_in_flight=4\) needs \d+\.\d % fewer joules a workflow than passthrough"
        r" \(95 % interval -\d+\.\d % to -\d+\.\d %; p [=<] [\d.]+; 40 pairs of blocks, 2\.22 h\)\.", said,
    ), said  # fmt: skip
    assert found.warnings == []
    assert found.carried is not None
    assert found.order is not None


def test_no_effect_is_not_called_one() -> None:
    defined = definition()
    assert sentence(analyse(defined, rows_of(defined), draws=499)).startswith("No difference was found between fifo")
    same = definition(arms=(ARMS[0], ARMS[0]), aa=True)
    assert sentence(analyse(same, rows_of(same), draws=499)).startswith("A/A: both arms are passthrough")


def test_without_energy_there_is_latency_and_the_reason() -> None:
    defined = definition()
    found = analyse(defined, rows_of(defined, energy=False, effect=0.3), draws=499)
    said, times = sentence(found).split(" Of times: ")
    assert said == "Nothing can be said of joules a workflow: no meter counted the joules of the engines."
    assert (
        times.startswith("fifo (max_in_flight=4) needs 33.5 %") and "more seconds a workflow than passthrough" in times
    )
    told = as_json(found)
    assert told["effects"]["joules_per_workflow"]["estimate"] is None
    assert told["joules_per_workflow_by_component"]["gpu"]["unavailable"].startswith("no meter counted the GPU")
    assert told["effects"]["p95_workflow_seconds"]["estimate"]["effect"] > 0.1
    assert "NaN" not in json.dumps({**told, "effects": {}})


def test_load_as_a_covariate_takes_its_noise_away() -> None:
    defined = definition(pairs=60)
    rng = np.random.default_rng(1)
    rows = []
    for row in rows_of(defined, effect=0.05, spread=0.01):
        load = float(np.exp(0.3 * rng.normal()))
        joules = (row.gpu_joules or 0.0) * load**-0.5
        rows.append(row._replace(offered_tokens=round(row.offered_tokens * load), gpu_joules=joules))
    primary = analyse(defined, rows, draws=499).primary
    assert primary.estimate is not None
    assert primary.adjusted is not None
    assert primary.adjusted.error < 0.3 * primary.estimate.error
    assert primary.adjusted.low < np.expm1(0.05) < primary.adjusted.high


def test_carry_over_is_seen_and_warned_of() -> None:
    defined = definition(pairs=60)
    found = analyse(defined, rows_of(defined, spread=0.03, carried=0.08), draws=499)
    assert found.carried is not None
    assert found.carried.low < 0.08 < found.carried.high
    assert any("carries over" in text for text in found.warnings)
    quiet = analyse(defined, rows_of(defined, spread=0.03), draws=499)
    assert quiet.carried is not None
    assert quiet.carried.low < 0.0 < quiet.carried.high


def test_unequal_traffic_and_one_sided_losses_are_warned_of() -> None:
    defined = definition(pairs=40)
    rows = [row._replace(began=row.began // 2 if row.arm else row.began) for row in rows_of(defined)]
    rows = [row._replace(marks=("engine_lost",)) if row.arm and row.pair < 7 else row for row in rows]
    found = analyse(defined, rows, draws=499)
    assert found.primary.pairs == 33
    assert any("did not get equal traffic" in text for text in found.warnings)
    assert any("may be its doing" in text for text in found.warnings)


def test_too_few_pairs_say_so() -> None:
    defined = definition()
    found = analyse(defined, rows_of(defined)[:2], draws=499)
    assert sentence(found).startswith("Nothing can be said of joules a workflow: 1 pairs of blocks")
    assert any("below 6" in text for text in found.warnings)
    assert analyse(defined, [], draws=499).primary.estimate is None
    assert page(analyse(defined, []), files.Recording(defined, 0.0, [], None, False))


def test_all_can_be_computed_again_from_the_csv(tmp_path: Path) -> None:
    defined = definition()
    rows = rows_of(defined, effect=0.1)
    assert main(["experiment-report", str(written(tmp_path / "blocks.jsonl", defined, rows))]) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    table = list(csv.DictReader((tmp_path / "blocks.csv").read_text().splitlines()))
    sums = {
        arm: [sum(float(row[name]) for row in table if row["arm"] == arm) for name in ("gpu_joules", "ended")]
        for arm in ("control", "treatment")
    }
    again = (sums["treatment"][0] / sums["treatment"][1]) / (sums["control"][0] / sums["control"][1]) - 1
    assert told["effects"]["joules_per_workflow"]["estimate"]["effect"] == pytest.approx(again)
    assert len(table) == defined.blocks
    assert told["definition"]["seed"] == defined.seed


def test_a_shadow_says_how_often_it_agrees() -> None:
    defined = definition(design="shadow")
    agreed = Agreement(100, 93, 93, 100, 100, 50.0, 60.0, -250.0, 5000.0, 100)
    rows = [row._replace(arm=0, shadow=agreed) for row in rows_of(defined)]
    found = analyse(defined, rows)
    assert sentence(found) == (
        f"fifo (max_in_flight=4) would have decided as passthrough did for 93.0 % (93.0 to 93.0) of {100 * len(rows)}"
        " calls, and sent them +0.5 s later on average; the energy model predicts -5.0 % (-5.0 to -5.0) joules for them"
        " (modelled). Nothing was run by it."
    )
    assert found.warnings == []
    told = page(found, files.Recording(defined, 0.0, rows, None, True))
    assert "What it would have done" in told and "Effects" not in told
    assert "shadow_same_time" in files.as_csv(rows, ["a", "b"]).splitlines()[0]
    unknown = [row._replace(shadow=agreed._replace(joules=0.0, joules_of_control=0.0, predicted=0)) for row in rows]
    assert "joules are not predicted" in sentence(analyse(defined, unknown))
    assert "asked no more (next: no)" in sentence(analyse(defined, [], "next: no"))


class Page(HTMLParser):
    """Tags that are open, and what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs, "an element without anything"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_fetches_nothing() -> None:
    name = "<script>alert(1)</script>"
    arms = (ARMS[0], ARMS[1].__class__("fifo", {"max_in_flight": 4}, "observe", name))
    defined = definition(arms=arms, guardrails=(guardrail_of("p95_workflow_seconds:+5%"), guardrail_of("errors:+1pp")))
    rows = rows_of(defined, effect=0.1)
    rows[4] = rows[4]._replace(marks=("engine_lost",))
    found = analyse(defined, rows, draws=499)
    html = page(found, files.Recording(defined, 1.75e9, rows, "p95: too slow", True))
    read = Page()
    read.feed(html)
    assert read.open == []
    assert [link for link in read.fetched if not link.startswith("data:text/csv;base64,")] == []
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids), "a picture that is not shown has no pattern for the other"
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert "@import" not in html
    assert "url(http" not in html
    assert name not in html
    for said in ("Stopped.", "p95: too slow", "unavailable", "engine_lost", "not shown to be kept", "its pair is not"):
        assert said in read.text, said
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html
    embedded = html.split('<script type="application/json" id="report">')[1].split("</script>")[0]
    assert json.loads(embedded)["answer"] == sentence(found)


def test_files_that_are_none_are_refused_and_a_cut_line_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defined = definition()
    path = written(tmp_path / "blocks.jsonl", defined, rows_of(defined), last=False)
    path.write_text(path.read_text() + '{"number": 40, "pai')
    assert len(files.read(path).rows) == defined.blocks
    for text, told in (("", "its first line"), ("{}\n", "its first line"), ("nonsense\n{}\n", "blocks.jsonl:1"),
                       (path.read_text().splitlines()[0] + '\n{"number": 1}\n{}\n', "blocks.jsonl:2")):  # fmt: skip
        path.write_text(text)
        assert main(["experiment-report", str(path)]) == 2
        assert told in capsys.readouterr().err
    assert main(["experiment-report", str(tmp_path / "none.jsonl")]) == 2


def test_split_and_swap_adds_both_blocks_of_an_arm_up() -> None:
    defined = definition(design="split_and_swap", engines=("a", "b"))
    rows = [each._replace(arm=arm, gpu_joules=(each.gpu_joules or 0.0) * (1.0 + 0.5 * (arm != each.arm)))
            for each in rows_of(defined, spread=0.01) for arm in (0, 1)]  # fmt: skip
    table = table_of(rows, METRICS["joules_per_workflow"])
    assert len(table) == defined.pairs
    assert np.abs(differences(table)).max() < 0.1, "a card that draws half as much again is in both arms"
    found = analyse(defined, rows)
    hours = 2 * defined.pairs * defined.block_seconds / 3600
    assert f"{defined.pairs} pairs of blocks, {time_text(hours)})" in sentence(found), (
        "a block's two rows are one block"
    )
    band = re.findall(
        r'<rect[^>]* height="8.0" class="(\w+)"><title>block 0, ',
        page(found, files.Recording(defined, 1.75e9, rows, None, True)),
    )
    assert sorted(band) == ["control", "control", "treatment", "treatment"], "on a screen and on a phone"


def test_the_example_is_played_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.experiments.example.PAIRS", 6)
    assert main(["experiments", "--example", str(tmp_path / "new")]) == 0
    assert "joules a workflow" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "blocks.jsonl", "blocks.csv", "report.html", "report.json",
    }  # fmt: skip
    assert files.read(tmp_path / "new" / "blocks.jsonl").ended


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--experiments", "10"], "--experiments must be at least 50"),
        (["--items", "1"], "--items must be at least 5"),
        (["--max-in-flight", "0"], "--max-in-flight must be at least 1"),
        (["--treatment", "passthrough"], "--treatment must not be the control"),
        (["--calibration", "none-such"], "--calibration: "),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments", *options]) == 2
    assert told in capsys.readouterr().err
