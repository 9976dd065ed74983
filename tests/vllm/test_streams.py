"""Streams through the gateway: vLLM's own bytes, also where the gateway asked for usage that the client did not."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.vllm.children import MAX_MODEL_LEN, Door, wait_until
from tests.vllm.test_parity import TOOLS, anthropic_body, completion_body, responses_body
from tests.vllm.wire import Answer, ask, chat_body

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TRIES = 12
"""vLLM may put two tokens into one event when its HTTP side lags, so a stream has more than one right form: on a
busy machine many."""

STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    ("chat", CHAT, chat_body()),
    ("chat-longer", CHAT, chat_body(max_tokens=40)),
    ("chat-one-token", CHAT, chat_body(max_tokens=1)),
    ("chat-usage", CHAT, chat_body(stream_options={"include_usage": True})),
    ("chat-no-usage", CHAT, chat_body(stream_options={"include_usage": False})),
    ("chat-options-null", CHAT, chat_body(stream_options=None)),
    ("chat-options-empty", CHAT, chat_body(stream_options={})),
    (
        "chat-continuous-usage",
        CHAT,
        chat_body(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    (
        "chat-continuous-without-usage",
        CHAT,
        chat_body(stream_options={"include_usage": False, "continuous_usage_stats": True}),
    ),
    ("chat-logprobs", CHAT, chat_body(logprobs=True, top_logprobs=2)),
    ("chat-two-choices", CHAT, chat_body(n=2, temperature=0.5, seed=7)),
    ("chat-tool-call", CHAT, chat_body(**TOOLS)),
    ("chat-stopped", CHAT, chat_body(max_tokens=12, stop=["."])),
    ("completion", COMPLETIONS, completion_body()),
    ("completion-usage", COMPLETIONS, completion_body(stream_options={"include_usage": True})),
    ("completion-two-prompts", COMPLETIONS, completion_body(["def f", "class A"])),
    (
        "completion-continuous-usage",
        COMPLETIONS,
        completion_body(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    ),
    ("responses", "/v1/responses", responses_body()),
    ("messages", "/v1/messages", anthropic_body()),
]


def stream(base_url: str, path: str, body: dict[str, Any], request_id: str) -> Answer:
    """One streamed call, read to its end."""
    return ask(base_url, "POST", path, {**body, "stream": True}, {"x-request-id": request_id})


def comparable(answer: Answer, body: dict[str, Any]) -> tuple[bytes, ...]:
    """The events; in one order where vLLM writes several choices at once, each when it comes."""
    events = answer.comparable_body.split(b"\n\n")
    several = body.get("n", 1) > 1 or isinstance(body.get("prompt"), list)
    return tuple(sorted(events) if several else events)


def data_payloads(answer: Answer) -> list[Any]:
    """The JSON of each event, without `[DONE]`."""
    lines = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


@pytest.mark.parametrize(("path", "body"), [entry[1:] for entry in STREAMS], ids=[entry[0] for entry in STREAMS])
def test_stream_is_byte_identical(engine: str, gateway: str, path: str, body: dict[str, Any]) -> None:
    request_id = uuid.uuid4().hex
    seen_direct, seen_through = set(), set()
    for _ in range(TRIES):
        direct, through = stream(engine, path, body, request_id), stream(gateway, path, body, request_id)
        assert through.status == direct.status == 200
        assert through.comparable_headers == direct.comparable_headers
        seen_direct.add(comparable(direct, body))
        seen_through.add(comparable(through, body))
        if seen_direct & seen_through:
            return
    assert seen_through.pop() == seen_direct.pop(), "no stream through the gateway is one that vLLM gives"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("flag", [True, "true", 1], ids=["bool", "string", "number"])
def test_stream_flag_as_vllm_reads_it(engine: str, gateway: str, path: str, flag: Any) -> None:
    """vLLM takes "true" and 1 for true: such a client still gets the stream it would get from vLLM."""
    body = (chat_body() if path == CHAT else completion_body()) | {"stream": flag}
    headers = {"x-request-id": uuid.uuid4().hex}
    direct, through = (ask(base, "POST", path, body, headers) for base in (engine, gateway))
    assert through.status == direct.status == 200
    assert through.header("content-type") == direct.header("content-type")
    assert through.comparable_body == direct.comparable_body


def test_error_of_a_streamed_call_is_vllms(engine: str, gateway: str) -> None:
    body = chat_body(max_tokens=10 * MAX_MODEL_LEN, stream=True)
    direct, through = (ask(base, "POST", CHAT, body) for base in (engine, gateway))
    assert direct.status == 400
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.comparable_headers == direct.comparable_headers


def logged_call(door: Door, request_id: str) -> dict[str, Any]:
    """The gateway's log line of one call; it is written when the call has ended, so it may come a moment later."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        lines = [line for line in door.text().splitlines() if request_id in line and line.startswith("{")]
        found[:] = map(json.loads, lines)
        return bool(found)

    wait_until(written, 5, f"a log line for {request_id}")
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("asked", [False, True], ids=["usage-not-asked", "usage-asked"])
@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, chat_body(max_tokens=7)), (COMPLETIONS, completion_body() | {"max_tokens": 7})],
    ids=["chat", "completions"],
)
def test_tokens_are_counted_whether_or_not_the_client_asked(
    engine: str, door: Door, path: str, body: dict[str, Any], asked: bool
) -> None:
    assert door.control_url and door.log, "this test reads the gateway's own figures: let the suite start it"
    usage = ask(engine, "POST", path, body).json()["usage"]
    before = output_tokens_metric(door)
    request_id = uuid.uuid4().hex
    options = {"stream_options": {"include_usage": True}} if asked else {}
    through = stream(door.url, path, body | options, request_id)
    with_usage = [payload for payload in data_payloads(through) if payload.get("usage")]
    assert len(with_usage) == (1 if asked else 0)
    line = logged_call(door, request_id)
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["output_tokens"] == usage["completion_tokens"] == 7
    wait_until(lambda: output_tokens_metric(door) == before + 7, 5, "7 more output tokens in the gateway's /metrics")


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/v1/responses", responses_body(), ("input_tokens", "output_tokens")),
        ("/v1/messages", anthropic_body(), ("input_tokens", "output_tokens")),
    ],
    ids=["responses", "messages"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tokens_of_other_apis_are_counted(
    engine: str, door: Door, path: str, body: dict[str, Any], names: tuple[str, str], streamed: bool
) -> None:
    assert door.log, "this test reads the gateway's log: let the suite start it"
    usage = ask(engine, "POST", path, body).json()["usage"]
    request_id = uuid.uuid4().hex
    ask(door.url, "POST", path, body | {"stream": streamed}, {"x-request-id": request_id})
    line = logged_call(door, request_id)
    assert (line["prompt_tokens"], line["output_tokens"]) == (usage[names[0]], usage[names[1]])


def output_tokens_metric(door: Door) -> float:
    """Output tokens that the gateway has counted."""
    assert door.control_url
    total = 0.0
    for line in ask(door.control_url, "GET", "/metrics").body.decode().splitlines():
        if line.startswith("joulegate_tokens_total{") and 'kind="output"' in line:
            total += float(line.rsplit(" ", 1)[1])
    return total
