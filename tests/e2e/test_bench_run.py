"""`joulegate-bench run` and `sweep` against engines behind sockets, as a user runs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.load import study
from bench.load.results import read
from bench.load.study import Size
from tests.e2e.twin_process import Twin
from tests.vllm.children import ROOT, wait_until

WAIT_SECONDS = 120.0
SMALL = ("--preset", "cpu", "--warm-up-seconds", "1", "--rate", "12", "--repeats", "1", "--idle-seconds", "0.5")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def start(*arguments: str) -> subprocess.Popen[str]:
    inherited = os.environ.get("PYTHONPATH", "")
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{inherited}", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ,
    )  # fmt: skip


def bench(*arguments: str) -> tuple[int, str]:
    process = start(*arguments)
    said, _ = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, said


def results(folder: Path) -> dict[str, Any]:
    """By policy."""
    found = [read(path) for path in folder.glob("*.parquet")]
    return {result.meta["spec"]["policy"]: result for result in found}


def test_an_engine_is_played_with_and_without_a_gateway(twin: str, tmp_path: Path) -> None:
    """The same work, with the gateway's words on it where there is one, and the twin's joules in both."""
    options = ("--workload", "map-reduce", "--policy", "none,fifo", "--engine", twin, "--seconds", "3")
    logs = tmp_path / "logs"
    code, said = bench("run", *options, *SMALL, "--stretch", "50", "--out", str(tmp_path), "--event-logs", str(logs))
    assert code == 0, said
    found = results(tmp_path)
    assert found.keys() == {"none", "fifo"}
    calls = {policy: result.rows("call").to_pylist() for policy, result in found.items()}
    for policy, result in found.items():
        (repeat,) = result.rows("repeat").to_pylist()
        assert repeat["complete"] and repeat["failed_calls"] == 0 and repeat["gpu_joules"] > 0, policy
        assert repeat["idle_watts"] > 0 and repeat["generating_s"] > 0
        assert repeat["cpu_joules"] is None and result.meta["energy"]["cpu"] == "unavailable"
        assert (result.meta["state"], result.meta["time_source"]) == ("complete", "simulated")
        assert result.meta["engine"]["model"] == "tiny" and result.meta["environment"]["git_commit"]
        assert all(window["running"] is not None for window in result.rows("window").to_pylist())
        assert all(call["output_tokens"] == call["wanted_output_tokens"] for call in calls[policy])
        assert all(call["first_token_s"] is not None for call in calls[policy])
    assert all(call["engine"] is None and call["held_s"] is None for call in calls["none"])
    assert all(call["engine"] == "engine" and call["held_s"] is not None for call in calls["fifo"])
    work = [
        sorted((call["workflow"], call["node"], call["prompt_tokens"], call["output_tokens"]) for call in each)
        for each in calls.values()
    ]
    assert work[0] == work[1] and work[0]
    # Tokens by the engine's own tokenizer, within what the chat's template and the salt add.
    for call in calls["none"]:
        assert call["prompt_tokens"] == pytest.approx(call["wanted_prompt_tokens"] + 25, rel=0.1, abs=25)
    code, said = bench("compare", *(str(found[policy].path) for policy in ("none", "fifo")))
    assert code == 0 and "workflow time, pair by pair" in said, said
    is_as_the_twin_says(tmp_path)
    foretells_its_log(logs)


def is_as_the_twin_says(folder: Path) -> None:
    """`beside`: the twin with the same sends is the same machine, whatever this one's clock did."""
    code, said = bench("beside", str(folder), "--json", str(folder / "beside.json"))
    assert code == 0, said
    rows = {row["policy"]: row for row in json.loads((folder / "beside.json").read_text())}
    assert (rows["none"]["baseline"], rows["fifo"]["baseline"]) == (None, "none")
    for row in rows.values():
        assert abs(row["same_sends_joules_per_workflow_error"]) < 0.05, row
        assert row["twin_workflow_p50_s"] > 0 and row["failed_calls"] == 0
    assert rows["none"]["ratio_joules"] is None
    assert rows["fifo"]["ratio_joules"] == pytest.approx(1.0, abs=0.25)


def foretells_its_log(logs: Path) -> None:
    """`energy-log`: the one gateway's log has windows, predicted before they were seen."""
    (log,) = logs.glob("*.jsonl")
    code, said = bench("energy-log", str(log), "--after", "0", "--seconds", "2")
    assert code == 0 and "joules simulated" in said, said
    code, said = bench("energy-log", str(log), "--after", "1e6")
    assert code == 1 and "no measured window later than" in said
    log.write_text("not a log\n")
    code, said = bench("energy-log", str(log))
    assert code == 2 and "line 1: not a line of an event log" in said


def test_beside_refuses_virtual_time(tmp_path: Path) -> None:
    """There is nothing to set beside the twin's own results, or beside nothing."""
    options = ("--workload", "copilot", "--seconds", "2", "--out", str(tmp_path))
    assert bench("run", *options, *SMALL)[0] == 0
    code, said = bench("beside", str(tmp_path))
    assert code == 2 and "was played on the twin in virtual time" in said
    code, said = bench("beside", str(tmp_path / "nowhere"))
    assert code == 2 and "nowhere" in said


def test_a_gateway_that_runs_already_is_measured_again_and_again(twin: str, tmp_path: Path) -> None:
    """With its own policy, beside its engine without it. It outlives the plays, so no workflow may come twice."""
    config = tmp_path / "joulegate.toml"
    config.write_text(
        f'[listen]\nport = 0\ncontrol_port = 0\n[policy]\nname = "fifo"\n[[engines]]\nname = "e"\nurl = "{twin}"\n'
    )
    command = [sys.executable, "-m", "proxy.cli", "serve", "--config", str(config)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as child:
        try:
            assert child.stdout is not None
            said = next(
                match for line in child.stdout if (match := re.search(r"joulegate: (http://\S+) in front", line))
            )
            options = ("--workload", "map-reduce", "--seconds", "2", *SMALL)
            play = ("run", *options, "--gateway", said[1], "--engine", twin, "--way")
            for way in ("native", "hinted"):
                for _ in range(2):
                    code, told = bench(*play, way, "--out", str(tmp_path / way))
                    assert code == 0, told
            code, told = bench(*play, "hinted", "--policy", "none", "--out", str(tmp_path / "hinted"))
            assert code == 0, told
        finally:
            child.terminate()
    found = results(tmp_path / "hinted")
    assert found.keys() == {"none", "gateway"}
    assert found["none"].meta["spec"]["gateway"] is None and found["gateway"].meta["spec"]["gateway"] == said[1]
    for result in (*found.values(), *results(tmp_path / "native").values()):
        (repeat,) = result.rows("repeat").to_pylist()
        assert repeat["failed_calls"] == 0 and repeat["gpu_joules"] > 0
    assert {call["engine"] for call in found["gateway"].rows("call").to_pylist()} == {"e"}
    code, told = bench("compare", str(found["none"].path), str(found["gateway"].path))
    assert code == 0, told  # the same workflows by the same names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gateway", "http://127.0.0.1:1"), "--gateway http://127.0.0.1:1: nobody answers"),
        (("--gateway", "http://127.0.0.1:1", "--policy", "fifo"), "the running gateway has its own"),
        (("--gateway", "http://127.0.0.1:1", "--in-flight", "3"), "the running gateway has its own limit"),
        (("--gateway", "127.0.0.1:1"), "must be a URL"),
        (("--policy", "gateway"), "say where"),
    ],
)
def test_a_gateway_that_cannot_be_measured_is_said(
    twin: str, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    code, said = bench("run", "--engine", twin, *options, "--out", str(tmp_path / "out"))
    assert code == 2 and words in said, said
    assert not (tmp_path / "out").exists()


def test_what_was_answered_before_ctrl_c_is_kept_and_marked(twin: str, tmp_path: Path) -> None:
    options = ("--workload", "coding", "--policy", "none", "--engine", twin, "--seconds", "600")
    process = start("run", *options, *SMALL, "--out", str(tmp_path))
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(r"\b[1-9]\d* of \d+ calls", line):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, said + rest
    result = results(tmp_path)["none"]
    assert result.meta["state"] == "interrupted" and "0 of 1" in result.meta["state_detail"]
    (repeat,) = result.rows("repeat").to_pylist()
    assert not repeat["complete"] and repeat["calls"] == result.rows("call").num_rows > 0


def test_a_sweep_of_a_real_engine_is_interleaved_and_resumed(twin: str, tmp_path: Path) -> None:
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(
        f'engine = "{twin}"\npreset = "cpu"\nworkload = "copilot"\nseconds = 2\nwarm_up_seconds = 0\nrepeats = 1\n'
        'rate = 8\n[grid]\npolicy = ["none"]\nin_flight = [1, 4]\n'
    )
    code, said = bench("sweep", str(file), "--out", str(out))
    assert code == 0 and "2 configurations" in said, said
    assert json.loads((out / "sweep.json").read_text())["state"] == "complete"
    code, said = bench("sweep", str(file), "--out", str(out))
    assert code == 0 and "2 of them there already" in said, said
    assert {read(path).meta["spec"]["in_flight"] for path in out.glob("*.parquet")} == {1, 4}


def test_an_engine_that_is_not_there_is_said_before_anything_is_run(tmp_path: Path) -> None:
    code, said = bench("run", "--engine", "http://127.0.0.1:1", "--out", str(tmp_path / "out"))
    assert code == 2 and "--engine http://127.0.0.1:1: nobody answers" in said
    assert not (tmp_path / "out").exists()


def test_a_twin_whose_seconds_are_not_the_clocks_is_refused(tmp_path: Path) -> None:
    child = Twin(tmp_path / "log", "--speed", "20")
    try:
        code, said = bench("run", "--engine", child.wait_ready_to_serve().url, "--out", str(tmp_path / "out"))
    finally:
        child.end()
    assert code == 2 and "× real time, so its joules would not fit the times" in said


async def _careless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that ends answers when it likes, has no counters and no tokenizer, and counts no cached tokens."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next((int(line.split(":")[1]) for line in head.lower().split("\r\n")
                           if line.startswith("content-length")), 0)  # fmt: skip
            body = json.loads(await reader.readexactly(length)) if length else {}
            status, document = 404, b"{}"
            if head.startswith("GET /v1/models"):
                status, document = 200, b'{"data": [{"id": "careless"}]}'
            elif head.startswith("POST /v1/chat/completions"):
                usage = {"prompt_tokens": 10, "completion_tokens": 3}
                status, document = (
                    200,
                    json.dumps({"choices": [{"message": {"content": "a b c"}}], "usage": usage}).encode(),
                )
                if body.get("stream"):
                    event = {"choices": [{"delta": {"content": "a b c"}}], "usage": usage}
                    document = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
            writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
                status, len(document)) + document)  # fmt: skip
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def test_an_engine_that_falls_short_is_told_of_at_the_start_and_in_the_result(tmp_path: Path) -> None:
    async def main() -> tuple[int, str]:
        server = await asyncio.start_server(_careless, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = ("--workload", "chat", "--policy", "none", "--engine", url, "--seconds", "2")
        async with server:
            return await asyncio.to_thread(bench, "run", *options, *SMALL, "--out", str(tmp_path))

    code, said = asyncio.run(main())
    assert code == 0, said
    start_of, _, _ = said.partition("repeat 1")
    codes = ("lengths_ignored", "cached_tokens_missing", "tokenizer_missing", "counters_missing")
    assert all(f"({code})" in start_of for code in codes) and "joules are unavailable" in start_of, said
    result = results(tmp_path)["none"]
    # On a busy machine the client may be late as well, against answers that take no time at all.
    assert {note["code"] for note in result.meta["notes"]} - {"late_client"} == {*codes, "energy_unavailable"}
    (repeat,) = result.rows("repeat").to_pylist()
    assert repeat["gpu_joules"] is None and repeat["cached_tokens"] is None and repeat["idle_watts"] is None
    assert repeat["energy_source"] == "unavailable" and repeat["generated_tokens"] is None
    assert result.meta["summary"]["joules_per_workflow"]["mean"] is None
    assert result.meta["summary"]["workflow_p50_s"]["mean"] is not None


@contextmanager
def careless_engine() -> Iterator[str]:
    """Its URL; in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_careless, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def test_a_study_of_an_engine_without_a_meter_tests_nothing_about_joules_and_has_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Size(1, 2.0, 0.0, 2, {"chain": 2}, (1, 2), (), (2.0,), {}, (3.0,), 3.0, lengths_of_all=False)
    monkeypatch.setattr(study, "LIVE_QUICK", tiny)
    with careless_engine() as url:
        code = main(["characterize", "--quick", "--engine", url, "--workload", "chain", "--preset", "cpu", "--policy",
                     "joule", "--idle-seconds", "0.1", "--output", str(tmp_path)])  # fmt: skip
    assert code == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("? cannot be tested here") == 2 * 6 and "No joules were measured on http" in page
    assert page.count("Not tested: joules were not measured.") == 3 and page.count("No cap was played") == 2
    table = page[page.index("What a workflow costs</h2>") : page.index("Six findings, tested</h2>")]
    rows = re.findall(r"<tr><td class=t>chain: .*?</tr>", table)
    assert len(rows) == 4 and all(row.count("<td>unavailable</td>") >= 4 for row in rows)


def test_ctrl_c_of_a_sweep_on_the_twin_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(
        'workload = "chat"\nseconds = 30\nwarm_up_seconds = 0\nrepeats = 1\n[grid]\n'
        f"seed = {list(range(40))}\nrate = [200]\n"
    )
    process = start("sweep", str(file), "--out", str(out), "--workers", "1")
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= 2, WAIT_SECONDS, "two configurations are there")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130 and "the same command goes on" in said, said
    states = [read(path).meta["state"] for path in out.glob("*.parquet")]
    assert states and set(states) <= {"complete", "partial"}
    index = json.loads((out / "sweep.json").read_text())
    assert index["state"] == "interrupted" and {cell["state"] for cell in index["cells"]} == {"complete", "missing"}


def test_player_speed_counts_its_streams_and_says_how_late_they_were(tmp_path: Path) -> None:
    """How late is the machine's affair; that all streams were played, and none failed, is the player's."""
    figures = tmp_path / "figures.json"
    options = ("--streams", "20", "--tokens", "10", "--itl-ms", "20", "--seconds", "1")
    code, said = bench("player-speed", *options, "--json", str(figures))
    assert code in (0, 1), said
    found = json.loads(figures.read_text())
    assert (found["streams"], found["failed"]) == (100, 0) and 0 < found["open_at_most"] <= 100
    assert found["late_p50_ms"] <= found["late_p99_ms"] <= found["late_max_ms"] and "sent late by" in said
    assert code == (found["late_share_max"] > 0.05)


def test_a_sweep_over_ray_is_the_sweep_of_this_host(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    file = tmp_path / "s.toml"
    file.write_text('workload = "chat"\nseconds = 5\nwarm_up_seconds = 0\nrepeats = 2\n[grid]\nin_flight = [1, 4]\n')
    for out, options in (("here", ("--workers", "1")), ("far", ("--ray", "local"))):
        code, said = bench("sweep", str(file), "--out", str(tmp_path / out), *options)
        assert code == 0, said
    for path in (tmp_path / "here").glob("*.parquet"):
        here, far = read(path), read(tmp_path / "far" / path.name)
        assert here.meta["summary"] == far.meta["summary"] and far.meta["state"] == "complete"
        assert here.rows("call").equals(far.rows("call"))
