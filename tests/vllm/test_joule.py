"""`joule` over a real vLLM: siblings held and sent as one, an order by slack that vLLM keeps, changes under streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.vllm.children import MAX_MODEL_LEN, MAX_NUM_SEQS, Gateway, wait_until
from tests.vllm.wire import Answer, OpenStream, ask, chat_body, load, running

CHAT = "/v1/chat/completions"
OUTPUT_TOKENS = 16
PATIENCE_SECONDS = 30.0
STALL_SECONDS = 60.0
"""On a busy machine vLLM's HTTP server may say nothing for many seconds."""
QUEUED_SECONDS = 600.0
"""A call may wait so long in vLLM's queue: until all before it have had their turn, each with a stall."""
ENDLESS_TOKENS = MAX_MODEL_LEN - 64
"""Whoever makes so many has its place at vLLM until its client leaves."""
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
    """Full, vLLM is sent calls with much slack and calls with little. It is freed of one place at a time, the next one
    only when somebody has got the last one: so no two ever start together, and no clock is asked."""
    deadlines = {"c": 5000, "a": 3000, "e": 7000, "b": 4000, "d": 6000}  # in the order in which they come
    places = [f"place-{number}" for number in range(MAX_NUM_SEQS)]
    started: SimpleQueue[str] = SimpleQueue()

    def open_stream(workflow: str, name: str, seconds: int) -> OpenStream:
        headers = {"x-workflow-id": workflow, "x-workflow-node": name, "x-workflow-deadline-ms": f"{1000 * seconds}"}
        stream = OpenStream(gateway.url, CHAT, request_of(name, ENDLESS_TOKENS), headers, QUEUED_SECONDS)
        streams.callback(stream.leave)
        first = pool.submit(lambda: next(stream.events()))
        first.add_done_callback(lambda _: started.put(f"{name}: {first.exception()}" if first.exception() else name))
        return stream

    declare(gateway, "busy", [node(name, tokens=ENDLESS_TOKENS) for name in places], 36_000)
    for name, seconds in deadlines.items():
        declare(gateway, name, [node(name, tokens=ENDLESS_TOKENS)], seconds)
    with ExitStack() as streams:
        busy = [open_stream("busy", name, 36_000) for name in places]
        assert {started.get(timeout=STALL_SECONDS) for _ in busy} == set(places)
        for queued, (name, seconds) in enumerate(deadlines.items(), 1):
            open_stream(name, name, seconds)
            wait_until(lambda: load(idle_engine) == (MAX_NUM_SEQS, queued), STALL_SECONDS, f"{name} waits at vLLM")  # noqa: B023
        order = []
        for stream in busy[: len(deadlines)]:
            assert started.empty(), "somebody started where no place was free"
            stream.leave()
            order.append(started.get(timeout=STALL_SECONDS))
    assert order == sorted(deadlines, key=deadlines.__getitem__)
    told = [decisions(gateway, name)[0]["sent"]["priority"] for name in order]
    assert told == sorted(set(told)), "what vLLM was told is the order of slack"


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
