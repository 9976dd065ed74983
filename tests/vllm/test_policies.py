"""Policies over a real vLLM: changed while calls run, and an order that vLLM's own queue keeps too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vllm.children import MAX_MODEL_LEN, MAX_NUM_SEQS, Gateway, wait_until
from tests.vllm.wire import OpenStream, ask, chat_body, wait_idle

PATIENCE_SECONDS = 60.0
POLICIES = ("fifo", "las", "parrot", "passthrough")


@pytest.fixture
def gateway(idle_engine: str, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own: its policy is changed."""
    child = Gateway(tmp_path / "log", ["--engine", idle_engine])
    try:
        child.wait_ready_to_serve()
        yield child
    finally:
        child.end()
    assert "Traceback" not in child.text()


def counted(engine: str, name: str) -> float:
    """A metric of vLLM's, summed over its labels."""
    text = ask(engine, "GET", "/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def use(gateway: Gateway, name: str, **options: float) -> None:
    """Another policy decides from now on."""
    said = ask(gateway.control_url, "POST", "/admin/policy", {"name": name, "options": options})
    assert said.status == 200, said.body


def test_the_policy_changes_under_load_and_every_call_runs_once(idle_engine: str, gateway: Gateway) -> None:
    before = counted(idle_engine, "vllm:request_success_total")

    def call(number: int) -> int:
        body = chat_body(f"number {number}", max_tokens=24, ignore_eos=True)
        return ask(gateway.url, "POST", "/v1/chat/completions", body, {"x-workflow-id": f"w{number % 7}"}).status

    with ThreadPoolExecutor(48) as pool:
        answers = [pool.submit(call, number) for number in range(96)]
        for number in range(24):
            name = POLICIES[number % len(POLICIES)]
            use(gateway, name, **({} if name == "passthrough" else {"max_in_flight": 1 + number % 5}))
        use(gateway, "passthrough")
        assert [answer.result() for answer in answers] == [200] * 96
    assert counted(idle_engine, "vllm:request_success_total") - before == 96


def test_vllms_own_queue_keeps_the_order_of_las(idle_engine: str, gateway: Gateway) -> None:
    """More calls than vLLM runs at once are sent to it: what has attained less passes what came before it there."""
    use(gateway, "las", quantum_seconds=0.0001)
    headers = {name: {"x-workflow-id": name} for name in ("old", "new")}
    assert ask(gateway.url, "POST", "/v1/chat/completions", chat_body(), headers["old"]).status == 200
    long = chat_body("on and on", max_tokens=MAX_MODEL_LEN - 64, ignore_eos=True)
    busy = [OpenStream(gateway.url, "/v1/chat/completions", long) for _ in range(MAX_NUM_SEQS)]
    waiting = "vllm:num_requests_waiting"

    def call_old() -> str:
        body = chat_body("old", max_tokens=128, ignore_eos=True)
        answer = ask(gateway.url, "POST", "/v1/chat/completions", body, headers["old"])
        assert answer.status == 200
        return answer.header("x-joulegate-decision") or ""

    try:
        wait_until(
            lambda: counted(idle_engine, "vllm:num_requests_running") == MAX_NUM_SEQS, PATIENCE_SECONDS, "it is full"
        )
        with ThreadPoolExecutor(1) as pool:
            old = pool.submit(call_old)
            try:
                wait_until(lambda: counted(idle_engine, waiting) == 1, PATIENCE_SECONDS, "the old one waits at vLLM")
                busy.append(OpenStream(gateway.url, "/v1/chat/completions", long, headers["new"]))
                wait_until(lambda: counted(idle_engine, waiting) == 2, PATIENCE_SECONDS, "both wait at vLLM")
                busy[0].leave()
                next(busy[-1].events())
                assert not old.done(), "the new workflow has the only place, for good"
            finally:
                busy[-1].leave()
            assert "rule=at_once" in old.result(PATIENCE_SECONDS), "neither was held here"
    finally:
        for stream in busy:
            stream.leave()
        wait_idle(idle_engine, PATIENCE_SECONDS)
