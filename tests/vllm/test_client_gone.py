"""A client that leaves frees vLLM's slot, streamed or not, running or queued, and nobody else's call is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.vllm.children import MAX_MODEL_LEN, MAX_NUM_SEQS, wait_until
from tests.vllm.wire import OpenStream, ask, chat_body, finished, running, send, wait_idle, wait_running, waiting

CHAT = "/v1/chat/completions"
FREE_SECONDS = 5.0
"""A bound that no healthy run comes near; the measured time is printed."""
LONG_TOKENS = MAX_MODEL_LEN - 200
LONG = chat_body("a long one", max_tokens=LONG_TOKENS, ignore_eos=True)
"""Runs far longer than any of these tests."""


@contextmanager
def streams(gateway: str, engine: str, count: int) -> Iterator[list[OpenStream]]:
    """That many long calls, all running inside vLLM; left at the end."""
    opened = [OpenStream(gateway, CHAT, LONG) for _ in range(count)]
    try:
        for stream in opened:
            next(stream.events())
        wait_running(engine, count)
        yield opened
    finally:
        for stream in opened:
            stream.leave()
        wait_idle(engine, 20)


def test_streaming_client_leaves(gateway: str, idle_engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with OpenStream(gateway, CHAT, LONG) as stream:
        events = stream.events()
        for _ in range(3):
            next(events)
        wait_running(idle_engine, 1)
    took = wait_idle(idle_engine, FREE_SECONDS)
    with capsys.disabled():
        print(f"\nslot free {took * 1000:.0f} ms after a streaming client left")


def test_waiting_client_leaves(gateway: str, idle_engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not streamed: no byte of an answer has come, and none will for long."""
    with closing(send(gateway, "POST", CHAT, LONG)):
        wait_running(idle_engine, 1)
    took = wait_idle(idle_engine, FREE_SECONDS)
    with capsys.disabled():
        print(f"\nslot free {took * 1000:.0f} ms after a client without a stream left")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/messages"])
def test_other_routes_too(gateway: str, idle_engine: str, path: str) -> None:
    long = {"model": LONG["model"], "max_tokens": LONG_TOKENS, "ignore_eos": True}
    if path == "/v1/completions":
        body = {**long, "prompt": "import os"}
    elif path == "/v1/responses":
        body = {**long, "input": "import os", "max_output_tokens": LONG_TOKENS}
    else:
        # Knows no `ignore_eos`: the likeliest token each time, which is none that ends an answer of this model.
        body = {**long, "messages": LONG["messages"], "top_k": 1}
    before = finished(idle_engine)
    with OpenStream(gateway, path, body) as stream:
        next(stream.events())
    wait_idle(idle_engine, FREE_SECONDS)
    assert finished(idle_engine) == before, "the call ended by itself: nothing is shown"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_queued_client_leaves_and_the_running_run_on(
    gateway: str, idle_engine: str, streamed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with streams(gateway, idle_engine, MAX_NUM_SEQS) as others:
        with closing(send(gateway, "POST", CHAT, {**LONG, "stream": streamed})):
            wait_until(lambda: waiting(idle_engine) == 1, 20, "one call waits in vLLM")
        took = wait_until(lambda: waiting(idle_engine) == 0, FREE_SECONDS, "no call waits in vLLM")
        assert running(idle_engine) == MAX_NUM_SEQS, "a running call was cancelled with the queued one"
        for stream in others:
            assert json.loads(next(stream.events()))["choices"]
    with capsys.disabled():
        print(f"\nqueue place free {took * 1000:.0f} ms after its client left")


def test_neighbour_gets_its_whole_answer(engine: str, gateway: str, idle_engine: str) -> None:
    """One leaves, the other, begun before and ended after, gets what it would have got alone."""
    body = chat_body("the neighbour", max_tokens=200, ignore_eos=True)
    alone = ask(engine, "POST", CHAT, body).json()["choices"][0]["message"]["content"]
    with OpenStream(gateway, CHAT, body) as neighbour:
        events = neighbour.events()
        pieces = [json.loads(next(events))]
        with OpenStream(gateway, CHAT, LONG) as leaver:
            next(leaver.events())
        wait_until(lambda: running(idle_engine) <= 1, FREE_SECONDS, "the leaver's slot is free")
        rest = list(events)
    assert rest.pop() == b"[DONE]"
    pieces += map(json.loads, rest)
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == alone


def test_many_leave_at_once(gateway: str, idle_engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = 3 * MAX_NUM_SEQS
    with ExitStack() as calls:
        for index in range(count):
            calls.enter_context(closing(send(gateway, "POST", CHAT, {**LONG, "stream": index % 2 == 0})))
        wait_until(lambda: running(idle_engine) + waiting(idle_engine) == count, 60, f"{count} calls are in vLLM")
    took = wait_idle(idle_engine, FREE_SECONDS)
    with capsys.disabled():
        print(f"\n{count} places free {took * 1000:.0f} ms after their clients left")
