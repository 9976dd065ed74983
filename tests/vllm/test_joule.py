"""`joule` over a real vLLM: siblings held and sent as one, an order by slack that vLLM keeps, changes under streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.children import MAX_MODEL_LEN, MAX_NUM_SEQS, Gateway, wait_until
from tests.vllm.wire import Answer, OpenStream, ask, chat_body, running, wait_idle, wait_running, waiting

CHAT = "/v1/chat/completions"
OUTPUT_TOKENS = 16
LONGER_TOKENS = 128
"""So many that two answers which follow each other do not come at the same moment."""
PATIENCE_SECONDS = 30.0
SIBLINGS = ("map-0", "map-1", "map-2", "map-3")


@pytest.fixture
def gateway(idle_engine: str, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own, under `joule`."""
    child = Gateway(tmp_path / "log", ["--engine", idle_engine])
    try:
        child.wait_ready_to_serve()
        use(child, "joule", engine_priority=True)
        yield child
    finally:
        child.end()
    assert "Traceback" not in child.text()


def use(gateway: Gateway, name: str, **options: object) -> None:
    """Another policy decides from now on."""
    said = ask(gateway.control_url, "POST", "/admin/policy", {"name": name, "options": options})
    assert said.status == 200, said.body


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def declare(gateway: Gateway, name: str, nodes: list[dict[str, Any]], seconds: float) -> None:
    """A workflow whose calls the test makes itself."""
    body = {"id": name, "mode": "declared", "deadline_ms": seconds * 1e3, "nodes": nodes}
    said = ask(gateway.url, "POST", "/v1/workflows", body)
    assert said.status == 201, said.body
    assert said.header("x-joulegate-deadline") is None, "it can be kept"


def node(name: str, *after: str, tokens: int = OUTPUT_TOKENS) -> dict[str, Any]:
    return {"id": name, "after": list(after), "expected_output_tokens": tokens, "request": request_of(name, tokens)}


def request_of(name: str, tokens: int) -> dict[str, Any]:
    return chat_body(name, max_tokens=tokens, ignore_eos=True)


def caller(gateway: Gateway, pool: ThreadPoolExecutor) -> Callable[..., Future[Answer]]:
    def call(workflow: str, name: str, tokens: int = OUTPUT_TOKENS) -> Future[Answer]:
        headers = {"x-workflow-id": workflow, "x-workflow-node": name}
        return pool.submit(ask, gateway.url, "POST", CHAT, request_of(name, tokens), headers)

    return call


def decisions(gateway: Gateway, workflow: str) -> list[dict[str, Any]]:
    said = ask(gateway.control_url, "GET", f"/admin/decisions?workflow={workflow}")
    found: list[dict[str, Any]] = said.json()["decisions"]
    return found


def test_siblings_are_held_and_let_go_as_one(gateway: Gateway, pool: ThreadPoolExecutor) -> None:
    call = caller(gateway, pool)
    for number in range(3):  # workflows come and go, so that another one is to be expected
        assert call(f"before-{number}", "n").result().status == 200
    declare(gateway, "group", [*(node(name) for name in SIBLINGS), node("end", *SIBLINGS)], 5.0)
    answers = []
    for number, name in enumerate(SIBLINGS, 1):  # one by one, as a client makes them
        answers.append(call("group", name))
        wait_until(lambda: len(decisions(gateway, "group")) == number, PATIENCE_SECONDS, f"{number} are here")  # noqa: B023
    held = decisions(gateway, "group")
    assert [each["state"] for each in held] == ["held"] * len(SIBLINGS)
    why = held[-1]["held"]["first"]
    assert why["rule"] == "company" and why["now"]["seconds"] < why["later"]["seconds"]
    assert [each.result().status for each in answers] == [200] * len(SIBLINGS)
    told = decisions(gateway, "group")
    sent_ago = [each["arrived_seconds_ago"] - each["sent"]["after_seconds"] for each in told]
    assert max(sent_ago) - min(sent_ago) < 0.02, "in one decision; each record is told at a time of its own"
    assert sorted(each["sent"]["calls_beside"] for each in told) == [0, 1, 2, 3]
    assert {each["sent"]["rule"] for each in told} == {"urgent"}
    assert all(each["regret"]["seconds"] > 0 for each in told), "at once would have been sooner"
    assert call("group", "end").result().status == 200


def test_vllms_own_queue_keeps_the_order_of_slack(idle_engine: str, gateway: Gateway, pool: ThreadPoolExecutor) -> None:
    """What has little slack passes what has much and came before it, at vLLM, to which both were sent."""
    call, ended = caller(gateway, pool), {}
    long = chat_body("on and on", max_tokens=MAX_MODEL_LEN - 64, ignore_eos=True)
    with ExitStack() as streams:
        busy = [streams.enter_context(OpenStream(gateway.url, CHAT, long)) for _ in range(MAX_NUM_SEQS)]
        wait_running(idle_engine, MAX_NUM_SEQS)
        answers = {}
        for place, (name, seconds) in enumerate((("much", 500.0), ("little", 50.0)), 1):
            declare(gateway, name, [node("n", tokens=LONGER_TOKENS)], seconds)
            answers[name] = call(name, "n", LONGER_TOKENS)
            answers[name].add_done_callback(lambda _, name=name: ended.setdefault(name, time.monotonic()))
            wait_until(lambda: waiting(idle_engine) == place, PATIENCE_SECONDS, f"{name} waits at vLLM")  # noqa: B023
        busy[0].leave()
        assert [answer.result().status for answer in answers.values()] == [200, 200]
    assert ended["little"] < ended["much"]
    (much,), (little,) = decisions(gateway, "much"), decisions(gateway, "little")
    assert little["sent"]["priority"] < much["sent"]["priority"]
    assert {much["sent"]["rule"], little["sent"]["rule"]} == {"covered"}, "steps were made anyway"
    wait_idle(idle_engine, PATIENCE_SECONDS)


def test_the_policy_changes_while_streams_run_and_calls_are_held(
    idle_engine: str, gateway: Gateway, pool: ThreadPoolExecutor
) -> None:
    call = caller(gateway, pool)
    body = chat_body("tell", max_tokens=600, ignore_eos=True)

    def read(stream: OpenStream) -> list[bytes]:
        with stream:
            return list(stream.events())

    streams = [pool.submit(read, OpenStream(gateway.url, CHAT, body)) for _ in range(MAX_NUM_SEQS)]
    wait_until(lambda: running(idle_engine) > 0, PATIENCE_SECONDS, "streams run at vLLM")
    answers = []
    for number, name in enumerate(("fifo", "joule", "las", "joule", "parrot", "passthrough", "joule")):
        use(gateway, name)
        declare(gateway, f"w{number}", [node("a"), node("b")], 3.0)
        answers += [call(f"w{number}", each) for each in "ab"]
    assert [answer.result().status for answer in answers] == [200] * len(answers)
    for stream in streams:
        events = stream.result()
        assert events[-1] == b"[DONE]" and len(events) > 10
    assert ask(gateway.control_url, "GET", "/admin/policy").json()["failed"] is None
    assert all(each["came_of_it"]["outcome"] == "answered" for each in decisions(gateway, "w6"))
