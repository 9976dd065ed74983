"""A sweep's file is checked as a whole, with lines; what was done is not done again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.load.cell import Keeper, file_name, play_virtual
from bench.load.results import read
from bench.load.run import add_options, specs_of
from bench.load.spec import Spec, SpecFault, of
from bench.load.sweep_file import read_sweep
from bench.programs import BenchError

GOOD = """\
seconds = 20
warm_up_seconds = 0
repeats = 2
preset = "small"
[grid]
workload = ["chain", "copilot"]
policy = ["fifo"]
"policy_options.max_in_flight" = [1, 8]
"""


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "s.toml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(BenchError) as caught:
        read_sweep(sweep_file(folder, text))
    return [line.strip().replace(f"{folder}/", "") for line in str(caught.value).splitlines()]


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    cells = read_sweep(sweep_file(tmp_path, GOOD)).cells
    assert len(cells) == 4 and len({file_name(cell) for cell in cells}) == 4
    assert [cell.policy_options for cell in cells[:2]] == [{"max_in_flight": 1}, {"max_in_flight": 8}]
    twice = GOOD.replace("[grid]", "[[grid]]") + '\n[[grid]]\nworkload = ["coding"]\nclass = ["batch"]\n'
    more = read_sweep(sweep_file(tmp_path, twice)).cells
    assert [cell.workload for cell in more] == ["chain", "chain", "copilot", "copilot", "coding"]
    assert more[-1].workflow_class == "batch"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("repeets = 3\n", "s.toml:1: repeets: unknown key; did you mean 'repeats'?"),
        ("[grid]\nraet = [1]\n", "s.toml:2: raet: unknown key; did you mean 'rate'?"),
        ("[grid]\n\npolicy = []\n", "s.toml:3: policy: is an empty list: nothing would be played"),
        ("[grid]\nrate = 3\n", "s.toml:2: rate: must be a list of values, not 3"),
        ("[grid]\nin_flight = [4, 0]\n", "s.toml:2: in_flight: must be a whole number from 1 to 65536, not 0"),
        ("[grid]\nworkload = ['chain', 'codng']\n", "s.toml:2: workload: no 'codng'; did you mean 'coding'?"),
        ("\nclass = 'slow'\n", "s.toml:2: class: must be one of interactive, standard, batch, not 'slow'"),
        ("[grid]\nparameters.chunks = [0]\n", "s.toml:2: parameters.chunks: "),
        ("workload = 'chain'\n[parameters]\nchunk = 3\n", "s.toml:3: parameters.chunk: no 'chunk'"),
        ("[grid]\ncap_watts = [300, 5000]\n", "s.toml:2: cap_watts: 5000 is outside of the card's 200 to 700 W"),
        ("engine = 'http://a:1'\n[grid]\ncap_watts = [300]\n", "s.toml:3: cap_watts: limits are set on the twin alone"),
        ("engine = 'twin:none'\n", "s.toml:1: engine: no calibration 'none'"),
        ("stretch = 2\n[grid]\ndeadline_ms = [5]\n", "s.toml:1: stretch: not together with deadline_ms"),
        ("[grid\n", "s.toml:1: is not TOML"),
        ("grid = 3\n", "s.toml:1: must be a table of lists"),
        ("[grid]\nseed = " + str(list(range(400))) + "\nusers = " + str(list(range(1, 400))) + "\n", "are allowed"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, text: str, wanted: str) -> None:
    found = problems(tmp_path, text)
    assert any(wanted in line for line in found), found


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "repeets = 3\n[grid]\npolicy = []\nraet = [1]\n")
    assert len(found) == 4 and "nothing was run" in found[0]


def test_a_configuration_is_the_same_from_its_document() -> None:
    spec = of({"workload": "chain", "parameters": {"chunk_tokens": [5, 9]}, "class": "batch", "cap_watts": 300})
    assert of(json.loads(json.dumps(spec.document()))) == spec
    assert of(Spec().document()) == Spec()
    with pytest.raises(SpecFault, match="way: native needs a gateway"):
        of({"policy": "none", "way": "native", "engine": "http://a:1"})
    with pytest.raises(SpecFault, match="trace: needed by workload trace"):
        of({"workload": "trace", "arrivals": "trace"})


def test_beside_other_policies_vllm_as_it_is_needs_no_way_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    asked = ["--engine", "http://a:1", "--way", "native", "--policy"]
    assert [spec.way for spec in specs_of(parser.parse_args([*asked, "none,joule"]))] == ["bare", "native"]
    with pytest.raises(BenchError, match="--way: native needs a gateway"):
        specs_of(parser.parse_args([*asked, "none"]))


def test_a_sweep_goes_on_where_it_was_broken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = sweep_file(tmp_path, GOOD), tmp_path / "out"
    cells = read_sweep(path).cells
    whole, half = cells[0], cells[1]
    for spec, repeats in ((whole, (1, 2)), (half, (2,))):
        keeper = Keeper(spec, out, {"time_source": "simulated", "notes": []})
        for repeat in repeats:
            keeper.add(play_virtual(spec, repeat))
    before = (out / file_name(whole)).stat().st_mtime_ns
    assert main(["sweep", str(path), "--out", str(out), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 configurations, 1 of them there already" in said
    assert (out / file_name(whole)).stat().st_mtime_ns == before
    index = json.loads((out / "sweep.json").read_text())
    assert index["state"] == "complete" and {cell["state"] for cell in index["cells"]} == {"complete"}
    repeats = read(out / file_name(half)).rows("repeat").to_pylist()
    assert [row["repeat"] for row in repeats] == [2, 1]  # the second was there, the first was played now
    assert main(["sweep", str(path), "--out", str(out)]) == 0  # nothing left to do
    assert "4 of them there already" in capsys.readouterr().out
    path.write_text(GOOD.replace("repeats = 2", "repeats = 3"))
    assert main(["sweep", str(path), "--out", str(out)]) == 2
    assert "is of another configuration" in capsys.readouterr().err


def test_a_check_plays_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(sweep_file(tmp_path, GOOD)), "--check", "--out", str(tmp_path / "out")]) == 0
    assert "4 configurations, 8 plays" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_twin_and_real_engines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[grid]\nengine = ["twin", "http://127.0.0.1:1"]\n'
    assert main(["sweep", str(sweep_file(tmp_path, text)), "--out", str(tmp_path / "out")]) == 2
    assert "on the twin or on real engines, not on both" in capsys.readouterr().err


def test_without_ray_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    path = sweep_file(tmp_path, GOOD)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert "pip install 'joulegate[ray]'" in capsys.readouterr().err
