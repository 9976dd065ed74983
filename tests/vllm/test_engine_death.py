"""vLLM is killed with calls in every state, stays dead, comes back: one story, told in order, with its own vLLM.

The gateway is never restarted. A start of vLLM takes most of a minute, so the states share one kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vllm.children import MAX_MODEL_LEN, VLLM, Gateway, answers_ok, free_port, wait_until
from tests.vllm.wire import Answer, OpenStream, ask, chat_body, receive, send, wait_running, waiting

CHAT = "/v1/chat/completions"
LONG = chat_body("a long one", max_tokens=MAX_MODEL_LEN - 200, ignore_eos=True)
DEAD_STATUS = (502, 503)
NOTICE_SECONDS = 15.0
"""Several probe intervals: until a gateway must have seen that an engine went or came back."""


@dataclass(slots=True)
class Story:
    """The parts that one test hands to the next."""

    folder: Path
    engine: VLLM
    gateway: Gateway
    starts: int = 1

    def restart(self) -> None:
        """The same command on the same port."""
        self.starts += 1
        self.engine = VLLM(self.folder / f"vllm-{self.starts}.log", self.engine.port, ["--max-num-seqs", "2"])
        self.engine.wait_healthy()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A vLLM with room for two calls, so that a third waits before its prefill; the gateway is begun while it loads."""
    folder = tmp_path_factory.mktemp("death")
    engine = VLLM(folder / "vllm-1.log", free_port(), ["--max-num-seqs", "2"])
    gateway = Gateway(folder / "joulegate.log", ["--engine", engine.url])
    told = Story(folder, engine, gateway)
    try:
        engine.wait_healthy()
        gateway.wait_ready_to_serve()
        yield told
    finally:
        gateway.end()
        told.engine.end()


@pytest.fixture(autouse=True)
def no_traceback_here(story: Story) -> Iterator[None]:
    """A dead engine is no surprise to the gateway."""
    yield
    assert "Traceback (most recent call last)" not in story.gateway.text(), story.gateway.tail()


def assert_refused(answer: Answer) -> None:
    """An error that OpenAI's clients understand, with a reason that a program can read."""
    assert answer.status in DEAD_STATUS, answer
    assert answer.header("x-joulegate-reason")
    assert (answer.header("content-type") or "").startswith("application/json")
    error = answer.json()["error"]
    assert error["message"] and error["type"] and "code" in error and "param" in error


def assert_broken_off(payloads: list[bytes]) -> None:
    """After a 200 the failure is an event with an error object, the last one, and no `[DONE]`."""
    assert payloads, "the stream ended without a word"
    assert b"[DONE]" not in payloads
    error = json.loads(payloads[-1])["error"]
    assert error["message"] and error["type"]
    for payload in payloads[:-1]:
        assert "error" not in json.loads(payload)


class TestStory:
    def test_1_killed_with_calls_in_every_state(self, story: Story) -> None:
        assert ask(story.gateway.url, "POST", CHAT, chat_body()).status == 200
        stream = OpenStream(story.gateway.url, CHAT, LONG)
        events = stream.events()
        for _ in range(3):
            next(events)
        whole = send(story.gateway.url, "POST", CHAT, LONG)
        wait_running(story.engine.url, 2)
        before_prefill = send(story.gateway.url, "POST", CHAT, LONG)
        before_prefill_streamed = send(story.gateway.url, "POST", CHAT, {**LONG, "stream": True})
        wait_until(lambda: waiting(story.engine.url) == 2, 20, "two calls wait")
        story.engine.kill()
        assert_broken_off(list(events))
        assert_refused(receive(whole))
        assert_refused(receive(before_prefill))
        last = receive(before_prefill_streamed)
        if last.status == 200:
            assert_broken_off([line[6:] for line in last.body.split(b"\n") if line.startswith(b"data: ")])
        else:
            assert_refused(last)

    @pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
    def test_2_dead_engine_is_said_at_once(self, story: Story, streamed: bool) -> None:
        wait_until(lambda: not answers_ok(f"{story.gateway.control_url}/ready"), NOTICE_SECONDS, "/ready is not 200")
        answer = ask(story.gateway.url, "POST", CHAT, chat_body(stream=streamed))
        assert_refused(answer)
        assert answer.status == 503
        assert answer.header("retry-after")
        assert_refused(ask(story.gateway.url, "POST", "/v1/messages", LONG))

    def test_3_calls_flow_again_after_its_restart(self, story: Story) -> None:
        story.restart()
        wait_until(
            lambda: ask(story.gateway.url, "POST", CHAT, chat_body()).status == 200,
            NOTICE_SECONDS,
            "a call through the gateway is answered",
        )
        assert answers_ok(f"{story.gateway.control_url}/ready")
        for streamed in (False, True):
            sent = {"x-request-id": f"after-restart-{streamed}"}
            body = chat_body(stream=streamed)
            direct, through = (ask(url, "POST", CHAT, body, sent) for url in (story.engine.url, story.gateway.url))
            assert (through.status, through.comparable_body) == (200, direct.comparable_body)

    def test_4_killed_idle(self, story: Story) -> None:
        """Kept-alive connections to it are left over; the next call must not hang on one of them."""
        wait_running(story.engine.url, 0)
        story.engine.kill()
        assert_refused(ask(story.gateway.url, "POST", CHAT, chat_body()))
        assert_refused(ask(story.gateway.url, "POST", CHAT, chat_body(stream=True)))

    def test_5_nothing_is_left_over(self, story: Story) -> None:
        state = ask(story.gateway.control_url, "GET", "/admin/state")
        assert state.status == 200
        assert answers_ok(f"{story.gateway.control_url}/health")
        story.gateway.process.terminate()
        assert story.gateway.wait_exit(40) == 0
