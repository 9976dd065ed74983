"""`joulegate ab plan`: what an experiment could find, from a call log or a given rate; what is refused, and why."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from proxy.ab.traffic import TrafficFault, workflows_of
from proxy.cli import main
from scheduler.experiments import ExperimentError, definition_of
from scheduler.experiments.definition import Arm, arm_of

if TYPE_CHECKING:
    from pathlib import Path

ARMS = ["ab", "plan", "--arms", "passthrough,fifo:max_in_flight=4"]


def line(second: float, workflow: str, duration_ms: float, output: int | None = 50, key: str = "-") -> bytes:
    hours, rest = divmod(second, 3600)
    stamp = f"2026-01-{1 + int(hours // 24):02}T{int(hours % 24):02}:{int(rest // 60):02}:{rest % 60:06.3f}Z"
    return json.dumps({
        "ts": stamp, "event": "call", "id": "c", "workflow": {"id": workflow}, "key": key, "prompt_tokens": 300,
        "cached_tokens": 100, "output_tokens": output, "duration_ms": duration_ms,
    }).encode() + b"\n"  # fmt: skip


def test_calls_of_a_workflow_are_put_together() -> None:
    lines = [
        line(10.0, "a", 1000.0), b'{"event":"engine_up"}\n', line(12.0, "a", 3000.0), line(11.0, "b", 500.0),
        line(13.0, "a", 9000.0, None), line(20.0, "a", 100.0, key="other"),
    ]  # fmt: skip
    found = workflows_of(lines)
    assert [(each.seconds, each.cost) for each in found] == [(5.0, 140.0), (0.5, 70.0), (pytest.approx(0.1), 70.0)]


def test_a_log_that_is_none_names_the_line() -> None:
    with pytest.raises(TrafficFault, match="line 2 is no line"):
        workflows_of([line(1.0, "a", 1.0), b"nonsense\n", line(2.0, "b", 1.0)])
    with pytest.raises(TrafficFault, match="line 1 is no line"):
        workflows_of([b'{"event":"call","output_tokens":3}\n'])
    with pytest.raises(TrafficFault, match="no answered call"):
        workflows_of([b'{"event":"engine_up"}\n'])
    assert len(workflows_of([line(1.0, "a", 1.0), b'{"ts": "20'])) == 1, "a line cut off at the end is no fault"


def test_from_a_call_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    log, out = tmp_path / "calls.jsonl", tmp_path / "plan.json"
    log.write_bytes(b"".join(
        line(10.0 * number, f"w{number}", rng.uniform(2000, 9000), rng.randint(20, 200)) for number in range(5000)
    ))  # fmt: skip
    assert main([*ARMS, "--calls", str(log), "--write", str(out), "--guardrail", "p95_workflow_seconds:+5%"]) == 0
    said = capsys.readouterr().out
    assert "pairs of blocks of recorded traffic" in said
    assert "detectable" in said
    made = definition_of(json.loads(out.read_text()))
    assert made.washout_seconds == 9.0
    assert made.block_seconds >= 60.0
    assert str(made.guardrails[0]) == "p95_workflow_seconds:+5%"


def test_what_cannot_be_found_is_refused_with_the_time_that_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    rate = ["--rate", "0.1", "--p95-seconds", "30", "--hours", "6"]
    assert main([*ARMS, *rate, "--effect", "2%"]) == 1
    assert "an effect of 2 % cannot be found in 6.0 h, where only" in capsys.readouterr().err
    assert main([*ARMS, *rate, "--effect", "60%"]) == 0
    assert main([*ARMS, *rate, "--pair-spread", "1%", "--effect", "2%"]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", "1"], "--rate needs --p95-seconds"),
        (["--rate", "1", "--p95-seconds", "300", "--hours", "1"], "6 are needed"),
        (["--rate", "1", "--p95-seconds", "30", "--block-seconds", "20"], "not above the wash-out of 30 s"),
        (["--rate", "1", "--p95-seconds", "30", "--metric", "joules"], 'metric: "joules" is no metric'),
        (["--rate", "1", "--p95-seconds", "30", "--guardrail", "p95:5"], "guardrails: "),
        (["--rate", "1", "--p95-seconds", "30", "--arms", "passthrough,jule"], '"jule" is no policy'),
        (["--rate", "1", "--p95-seconds", "30", "--arms", "passthrough"], "there must be 2"),
        (["--rate", "1", "--p95-seconds", "30", "--arms", "passthrough,fifo:x"], 'arms: "x" in "fifo:x"'),
        (["--calls", "/nowhere/calls.jsonl"], "--calls: "),
    ],
)
def test_bad_input_is_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARMS, *options]) == 2
    assert told in capsys.readouterr().err


def test_blocks_too_small_for_a_guardrail_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    guarded = [*ARMS, "--guardrail", "p95_workflow_seconds:+5%", "--p95-seconds", "30"]
    assert main([*guarded, "--rate", "0.5"]) == 0
    assert "60 workflows in a block: a guardrail needs about" in capsys.readouterr().err
    assert main([*guarded, "--rate", "5"]) == 0
    assert capsys.readouterr().err == ""


def test_arms_as_text() -> None:
    assert arm_of("fifo:max_in_flight=4:caps=actuate") == Arm("fifo", {"max_in_flight": 4}, "actuate")
    for text in ("", "fifo:caps=hot", "fifo:max_in_flight=", ":a=1"):
        with pytest.raises(ExperimentError, match="arms: "):
            arm_of(text)


def test_a_cap_that_settles_is_in_the_wash_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the defaults of [caps], by the gateway's configuration, or as given; with the gateway's mode, too."""
    rate = ["--rate", "5", "--p95-seconds", "25"]
    config = tmp_path / "gateway.toml"
    caps = "[caps]\nfloor_share = 0.8\nttft_seconds_p95 = 1.0\nitl_seconds_p95 = 0.1\n[experiments]\npace = 2\n"
    config.write_text('[[engines]]\nurl = "http://127.0.0.1:1"\n[power]\nmode = "actuate"\n' + caps)
    out = tmp_path / "plan.json"

    def washout(*options: str) -> float:
        assert main([*ARMS[:3], *options, *rate, "--write", str(out)]) == 0
        return definition_of(json.loads(out.read_text())).washout_seconds

    assert washout("passthrough,fifo:max_in_flight=4") == 25.0
    assert "caps" not in capsys.readouterr().out
    assert washout("passthrough,fifo:caps=actuate") == 168.0
    assert "142.5 s of it until a cap has stepped down" in capsys.readouterr().out
    assert washout("passthrough,fifo:max_in_flight=4", "--config", str(config)) == 110.0
    assert washout("passthrough:caps=off,fifo:caps=off", "--config", str(config), "--id", "aa") == 25.0
    assert washout("passthrough,fifo:caps=actuate", "--cap-settling-seconds", "10") == 35.0
    assert main([*ARMS, *rate, "--config", str(tmp_path / "none.toml")]) == 2
    assert "--config: " in capsys.readouterr().err


def test_split_and_swap_is_planned_with_its_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On traffic whose load wanders, arms that run at once differ less than arms in turns."""
    rng = random.Random(1)
    log, out = tmp_path / "calls.jsonl", tmp_path / "plan.json"
    second, lines = 0.0, []
    levels = [rng.choice((1, 10)) for _ in range(1000)]
    while second < 43_200.0:
        longer = levels[int(second // 50)]
        second += 2.0
        lines.append(line(second, f"w{len(lines)}", rng.uniform(2000, 9000), rng.randint(20, 200) * longer))
    log.write_bytes(b"".join(lines))
    spreads = []
    for more in ([], ["--design", "split_and_swap", "--engines", "a,b"]):
        assert main([*ARMS, "--calls", str(log), "--write", str(out), *more]) == 0
        made = definition_of(json.loads(out.read_text()))
        spreads.append(made.spread * made.block_seconds**0.5)
    assert (made.design, made.engines) == ("split_and_swap", ("a", "b"))
    assert spreads[1] < 0.7 * spreads[0]
    assert main([*ARMS, "--calls", str(log), "--design", "split_and_swap"]) == 2
    assert "engines: split_and_swap needs an even number" in capsys.readouterr().err
