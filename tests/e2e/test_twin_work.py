"""`joulegate twin` at work: who runs, who leaves, what it says of itself, and how it ends."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from tests.e2e.twin_process import COMPLETIONS, Twin, completion, good, own_calibration, refused, sample
from tests.vllm.children import ROOT, joulegate_command, wait_until
from tests.vllm.wire import OpenStream, ask, gauge, running, send, waiting

PATIENCE_SECONDS = 20.0
LONG = 30_000
"""Tokens whose decoding outlasts every test at real time: 150 s."""


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A quick one, for whatever does not watch it work."""
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", "100", "--max-model-len", "4096")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()
    assert "Traceback" not in child.text()


@pytest.fixture(scope="module", params=["priority", "fcfs"])
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its policy, and a real-time one that computes a single sequence at a time."""
    folder = tmp_path_factory.mktemp("narrow")
    policy: str = request.param
    child = Twin(
        folder / "log",
        *("--scheduling-policy", policy),
        calibration=own_calibration(folder, max_num_seqs=1),
    )
    try:
        yield policy, child.wait_ready_to_serve().url
    finally:
        child.end()
    assert "Traceback" not in child.text()


def soon(condition: Callable[[], bool], what: str) -> None:
    """Wait until it is so, as an operator would look."""
    wait_until(condition, PATIENCE_SECONDS, what)


# --- one sequence at a time ---


def hold(url: str) -> OpenStream:
    """A stream that occupies the engine, its first token read."""
    held = OpenStream(url, COMPLETIONS, completion("hold", max_tokens=LONG))
    next(held.events())
    return held


def test_a_client_that_leaves_frees_its_slot_streaming_or_not(narrow: tuple[str, str]) -> None:
    _, url = narrow
    with hold(url):
        queued = send(url, "POST", COMPLETIONS, completion("queued", max_tokens=LONG))
        soon(lambda: waiting(url) == 1, "the second call waits")
        queued.close()
        soon(lambda: waiting(url) == 0, "the second call's client left")
        after = send(url, "POST", COMPLETIONS, completion("after", max_tokens=LONG))
        soon(lambda: waiting(url) == 1, "the third call waits")
    soon(lambda: (waiting(url), running(url)) == (0, 1), "the third call runs, the first having left")
    after.close()
    soon(lambda: running(url) == 0, "the third call's client left")
    assert gauge(url, "vllm:kv_cache_usage_perc") == 0
    assert ask(url, "GET", "/load").json() == {"server_load": 0}


def test_who_is_next(narrow: tuple[str, str]) -> None:
    policy, url = narrow
    patient_body = completion("patient", max_tokens=LONG, priority=5)
    urgent_body = completion("urgent", max_tokens=LONG, priority=0)
    held = hold(url)
    with held, OpenStream(url, COMPLETIONS, patient_body) as patient:
        soon(lambda: waiting(url) == 1, "the patient call waits")
        with OpenStream(url, COMPLETIONS, urgent_body) as urgent:
            soon(lambda: waiting(url) == 2, "the urgent call waits")
            held.leave()
            next((urgent if policy == "priority" else patient).events())
            assert (running(url), waiting(url)) == (1, 1), "the other one came first"


def test_more_than_may_queue_are_refused(tmp_path: Path) -> None:
    child = Twin(tmp_path / "log", "--max-num-queued-reqs", "2")
    try:
        url = child.wait_ready_to_serve().url
        with hold(url):
            assert "currently busy" in refused(ask(url, "POST", COMPLETIONS, completion(n=2)), 503)
            assert ask(url, "POST", COMPLETIONS, completion()).status == 200
        soon(lambda: running(url) == 0, "the client left")
        assert ask(url, "POST", COMPLETIONS, completion(n=2)).status == 200
        assert sample(url, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    finally:
        child.end()


def test_clients_that_do_not_wait_for_a_word_leave_no_trace(twin: str) -> None:
    for streamed in (True, False) * 10:
        send(twin, "POST", COMPLETIONS, completion(max_tokens=4000, stream=streamed)).close()
    soon(lambda: (running(twin), waiting(twin)) == (0, 0), "nothing is left of them")
    assert gauge(twin, "vllm:kv_cache_usage_perc") == 0


# --- metrics and power ---


def test_metrics_move_with_a_call(twin: str) -> None:
    names = (
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_count",
        "iteration_tokens_total_count",
    )
    before = [sample(twin, f"vllm:{name}") for name in names]
    done = sample(twin, "vllm:request_success_total", finished_reason="length")
    latencies = sample(twin, "vllm:inter_token_latency_seconds_count")
    answer = good(twin, COMPLETIONS, completion([9, 8, 7, 6]))
    assert answer["usage"]["completion_tokens"] == 30
    moved = [sample(twin, f"vllm:{name}") - was for name, was in zip(names, before, strict=True)]
    assert moved == [4, 30, 1, 30]
    assert sample(twin, "vllm:request_success_total", finished_reason="length") == done + 1
    assert sample(twin, "vllm:inter_token_latency_seconds_count") == latencies + 29
    assert sample(twin, "vllm:e2e_request_latency_seconds_bucket", le="+Inf") == sample(
        twin, "vllm:e2e_request_latency_seconds_count"
    )


def test_power_is_drawn_and_limited(twin: str) -> None:
    first = ask(twin, "GET", "/power").json()
    good(twin, COMPLETIONS, completion(max_tokens=1000))
    second = ask(twin, "GET", "/power").json()
    seconds = second["time_seconds"] - first["time_seconds"]
    joules = second["energy_joules"] - first["energy_joules"]
    assert joules > 119 * (seconds - 0.2) > 0  # more than idle, but for the counter's ticks
    limits = first["limit_watts"]
    assert limits["min"] < limits["requested"] == limits["enforced"] == limits["default"]
    answer = good(twin, "/power/limit", {"limit_watts": limits["min"]})
    assert answer["limit_watts"]["requested"] == limits["min"]

    def enforced() -> bool:
        watts: float = ask(twin, "GET", "/power").json()["limit_watts"]["enforced"]
        return watts == limits["min"]

    soon(enforced, "the limit has settled")
    good(twin, "/power/limit", {"limit_watts": limits["default"]})


@pytest.mark.parametrize("body", [{"limit_watts": 5}, {"limit_watts": 1e9}, {"limit_watts": "x"}, {}, [1]])
def test_a_power_limit_out_of_range_is_refused(twin: str, body: Any) -> None:
    answer = ask(twin, "POST", "/power/limit", body)
    assert answer.status == 400
    assert "limit_watts" in answer.json()["error"]["message"] or body == [1]
    requested = ask(twin, "GET", "/power").json()["limit_watts"]
    assert requested["requested"] == requested["default"]


# --- the process ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_0_while_a_call_runs(tmp_path: Path, number: int) -> None:
    child = Twin(tmp_path / "log").wait_ready_to_serve()
    try:
        with hold(child.url):
            unread = send(child.url, "POST", COMPLETIONS, completion(max_tokens=LONG))
            soon(lambda: running(child.url) == 2, "both calls run")
            child.process.send_signal(number)
            assert child.wait_exit(PATIENCE_SECONDS) == 0
        unread.close()
        assert "Traceback" not in child.text()
    finally:
        child.kill()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--speed", "0"], "--speed"),
        (["--speed", "-1"], "--speed"),
        (["--speed", "nan"], "--speed"),
        (["--speed", "1e300"], "--speed"),
        (["--speed", "fast"], "--speed"),
        (["--port", "70000"], "--port"),
        (["--max-model-len", "0"], "--max-model-len"),
        (["--max-model-len", "99999999"], "--max-model-len"),
        (["--scheduling-policy", "random"], "--scheduling-policy"),
        (["--calibration", "nobody"], "h200-llama-3.1-8b"),
        (["--calibration", "/no/such/file.toml"], "/no/such/file.toml"),
        (["--card", "h300", "--model", "MODELS/qwen3-8b.json"], "card: 'h300'"),
        (["--card", "h200"], "--model"),
        (["--card", "h200", "--model", "/no/such/config.json"], "--model: /no/such/config.json"),
        (["--card", "h200", "--model", "MODELS/qwen3-8b.json", "--gpus", "0"], "--gpus"),
        (["--card", "h200", "--model", "MODELS/qwen3-8b.json", "--calibration", "h100-qwen3-14b"], "--calibration"),
        (["--max-num-seqs", "-1"], "--max-num-seqs"),
        (["--max-num-seqs", "9000"], "--max-num-batched-tokens"),
        (["--speed", "fast"], "must be a number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_exit_2_and_are_named(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    models = str(ROOT / "bench/twin/models")
    arguments = ["twin", *(option.replace("MODELS", models) for option in options)]
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_taken_port_exits_1(twin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", "--calibration", "h200-llama-3.1-8b", "--port", twin.rsplit(":", 1)[1]]) == 1
    assert "address already in use" in capsys.readouterr().err


def test_a_card_and_a_model_that_nobody_measured(tmp_path: Path) -> None:
    config = str(ROOT / "bench/twin/models/qwen3-14b.json")
    command = [*joulegate_command(), "twin", "--card", "a100", "--model", config, "--max-num-seqs", "2", "--port", "0"]
    child = Twin(tmp_path / "log", command=command)
    try:
        url = child.wait_ready_to_serve().url
        assert "nothing measured" in child.text()
        assert "expect errors of 15% in time" in child.text()
        assert ask(url, "GET", "/power").json()["card"].startswith("NVIDIA A100")
        assert ask(url, "GET", "/v1/models").json()["data"][0]["id"] == "Qwen/Qwen3-14B"
    finally:
        child.end()


def test_a_gateway_without_an_engine_brings_the_twin(tmp_path: Path) -> None:
    command = [*joulegate_command(), "up", "--port", "0", "--control-port", "0"]
    child = Twin(tmp_path / "log", command=command)
    try:
        child.wait_ready_to_serve()
        found: list[str] = []

        def listens() -> bool:
            found.extend(re.findall(r"joulegate: (http://\S+) in front of", child.text()))
            return bool(found)

        wait_until(listens, 30.0, "the gateway listens")
        answer = ask(found[0], "POST", COMPLETIONS, completion(model="meta-llama/Llama-3.1-8B-Instruct"))
        assert answer.status == 200
        assert answer.header("x-joulegate-engine") == "twin (simulated)"
        assert "engine=twin" in (answer.header("x-joulegate-decision") or "")
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == 0
    finally:
        child.end()
