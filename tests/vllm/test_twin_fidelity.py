"""The twin answers as real vLLM does: the same calls to both, compared by shape, status, framing and metrics.

Text, token counts of texts and times differ and are not compared; what is refused is compared word by word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

import openai
import pytest

from tests.vllm.children import MAX_MODEL_LEN, SERVED_NAME
from tests.vllm.test_parity import MESSAGES, TOOLS, completion_body, responses_body
from tests.vllm.wire import Answer, ask, chat_body

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
KEPT = frozenset({"object", "type", "role", "status", "finish_reason", "param", "code", "truncation", "service_tier"})
"""Fields whose values are compared, not only their types."""


def shape(value: Any, key: str = "") -> Any:
    """What it consists of: fields in their order, types; a list by its first element; maps by token as one entry."""
    if isinstance(value, dict):
        if value and all(isinstance(each, float) for each in value.values()):
            return {"TOKEN": "float"}
        if value and all(isinstance(each, dict) and "decoded_token" in each for each in value.values()):
            return {"TOKEN": shape(next(iter(value.values())))}
        return [(name, shape(each, name)) for name, each in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if key in KEPT:
        return value
    return type(value).__name__


def events(answer: Answer) -> list[Any]:
    """A stream's events by name and shape, equal ones in a row as one."""
    seen: list[Any] = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        *names, data = block.split("\n")
        assert data.startswith("data: "), block
        payload = data.removeprefix("data: ")
        seen.append((names, payload if payload == "[DONE]" else shape(json.loads(payload))))
    return [key for key, _ in groupby(seen)]


def both(engine: str, twin: str, path: str, body: Any, method: str = "POST") -> tuple[Answer, Answer]:
    """The same request to vLLM and to the twin."""
    headers = {"x-request-id": "the-same"}
    return ask(engine, method, path, body, headers), ask(twin, method, path, body, headers)


TOOL = TOOLS | {"max_tokens": 200}
SCHEMA = TOOLS["tools"][0]["function"]["parameters"]
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ENDLESS = {"ignore_eos": True}

ANSWERED = {
    "chat": (CHAT, chat_body()),
    "chat-n": (CHAT, chat_body(n=2, temperature=0.5, **ENDLESS)),
    "chat-logprobs": (CHAT, chat_body(logprobs=True, top_logprobs=2)),
    "chat-logprobs-alone": (CHAT, chat_body(logprobs=True)),
    "chat-prompt-logprobs": (CHAT, chat_body(prompt_logprobs=1)),
    "chat-token-ids": (CHAT, chat_body(return_token_ids=True)),
    "chat-parts": (CHAT, chat_body(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}])),
    "chat-system": (CHAT, chat_body(messages=[{"role": "system", "content": "x"}, *MESSAGES])),
    "chat-continued": (CHAT, chat_body(add_generation_prompt=False, continue_final_message=True)),
    "chat-max-completion-tokens": (CHAT, chat_body(max_completion_tokens=2)),
    "chat-number-as-string": (CHAT, chat_body(max_tokens="3")),
    "chat-no-model": (CHAT, {"messages": MESSAGES, "max_tokens": 2, **ENDLESS}),
    "chat-form": (CHAT, chat_body(response_format=FORM, max_tokens=60)),
    "chat-form-cut": (CHAT, chat_body(response_format=FORM, max_tokens=2)),
    "chat-choice": (CHAT, chat_body(structured_outputs={"choice": ["yes", "no"]}, max_tokens=20)),
    "chat-tools-auto": (CHAT, chat_body(tools=TOOLS["tools"], **ENDLESS)),
    "chat-stop-id": (CHAT, chat_body(stop_token_ids=list(range(3, 4096)), max_tokens=400)),
    "chat-priority-and-salt": (CHAT, chat_body(priority=3, cache_salt="x")),
    "completion": (COMPLETIONS, completion_body()),
    "completion-two": (COMPLETIONS, completion_body(["def f", "class A"], n=2, temperature=1, **ENDLESS)),
    "completion-ids": (COMPLETIONS, completion_body([5, 6, 7], echo=True)),
    "completion-echo-alone": (COMPLETIONS, completion_body("def f", echo=True, max_tokens=0)),
    "completion-logprobs": (COMPLETIONS, completion_body(logprobs=2)),
    "completion-logprobs-0": (COMPLETIONS, completion_body(logprobs=0)),
    "completion-echo-logprobs": (COMPLETIONS, completion_body("def f", echo=True, logprobs=1)),
    "completion-prompt-logprobs": (COMPLETIONS, completion_body(prompt_logprobs=1)),
    "completion-token-ids": (COMPLETIONS, completion_body(return_token_ids=True)),
    "completion-full": (COMPLETIONS, completion_body([5] * (MAX_MODEL_LEN - 1), max_tokens=9, **ENDLESS)),
    "completion-truncated": (COMPLETIONS, completion_body([5] * 20_000, truncate_prompt_tokens=10)),
    "completion-default-length": (COMPLETIONS, {"model": SERVED_NAME, "prompt": "a", **ENDLESS}),
    "responses": (RESPONSES, responses_body()),
    "responses-items": (RESPONSES, responses_body(input=[{"role": "user", "content": "hi"}], instructions="x")),
    "responses-logprobs": (
        RESPONSES,
        responses_body(include=["message.output_text.logprobs"], top_logprobs=1),
    ),
    "responses-form": (
        RESPONSES,
        responses_body(text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, max_output_tokens=60),
    ),
    "tokenize": ("/tokenize", {"model": SERVED_NAME, "prompt": "def f"}),
    "tokenize-strings": ("/tokenize", {"model": SERVED_NAME, "prompt": "def f", "return_token_strs": True}),
    "tokenize-chat": ("/tokenize", {"model": SERVED_NAME, "messages": MESSAGES}),
    "detokenize": ("/detokenize", {"model": SERVED_NAME, "tokens": [5, 6, 7]}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_have_the_same_shape(engine: str, twin: str, name: str) -> None:
    real, ours = both(engine, twin, *ANSWERED[name])
    assert (real.status, ours.status) == (200, 200), (real.body, ours.body)
    assert shape(ours.json()) == shape(real.json())
    assert ours.header("content-type") == real.header("content-type")
    assert ours.header("x-request-id") == real.header("x-request-id") == "the-same"
    if "id" in real.json() and "responses" not in name:
        assert ours.json()["id"] == real.json()["id"]


STREAMED = {
    "chat": (CHAT, chat_body(**ENDLESS)),
    "chat-usage": (CHAT, chat_body(**USAGE, **ENDLESS)),
    "chat-continuous-alone": (CHAT, chat_body(stream_options={"continuous_usage_stats": True}, **ENDLESS)),
    "chat-logprobs": (CHAT, chat_body(logprobs=True, top_logprobs=1, **ENDLESS)),
    "chat-token-ids": (CHAT, chat_body(return_token_ids=True, **ENDLESS)),
    "chat-one-token": (CHAT, chat_body(max_tokens=1, **ENDLESS)),
    "chat-stop-id": (CHAT, chat_body(stop_token_ids=list(range(3, 4096)), **USAGE)),
    "completion": (COMPLETIONS, completion_body(**ENDLESS)),
    "completion-usage": (COMPLETIONS, completion_body(**USAGE, **ENDLESS)),
    "completion-echo": (COMPLETIONS, completion_body(echo=True, **ENDLESS)),
    "completion-logprobs": (COMPLETIONS, completion_body(logprobs=1, return_token_ids=True, **ENDLESS)),
    "completion-held-back": (COMPLETIONS, completion_body(stop="x" * 99, **ENDLESS)),
    "responses": (RESPONSES, responses_body(ignore_eos=True, max_output_tokens=12)),
    "responses-logprobs": (
        RESPONSES,
        responses_body(include=["message.output_text.logprobs"], top_logprobs=1, ignore_eos=True),
    ),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streams_have_the_same_events(engine: str, twin: str, name: str) -> None:
    path, body = STREAMED[name]
    real, ours = both(engine, twin, path, {**body, "stream": True})
    assert (real.status, ours.status) == (200, 200), (real.body, ours.body)
    assert events(ours) == events(real)
    for header in ("content-type", "transfer-encoding", "content-length"):
        assert ours.header(header) == real.header(header)


def test_a_tool_call_has_vllms_shape(engine: str, twin: str) -> None:
    """The tiny model closes its arguments only by luck, so vLLM is asked until it has."""
    tool = {"type": "function", "function": {**TOOL["tools"][0]["function"], "parameters": {"type": "object"}}}
    tool["function"]["parameters"] = {"type": "object", "properties": {}, "additionalProperties": False}
    for seed in range(30):
        body = chat_body(**{**TOOL, "tools": [tool], "temperature": 1, "seed": seed})
        real, ours = both(engine, twin, CHAT, body)
        if "tool_calls" in real.json()["choices"][0]["message"]:
            assert shape(ours.json()) == shape(real.json())
            return
    pytest.fail("vLLM never completed a call")


REFUSED = {
    "no-prompt": (COMPLETIONS, {"model": SERVED_NAME}),
    "empty-prompt": (COMPLETIONS, completion_body("")),
    "no-prompts": (COMPLETIONS, completion_body([])),
    "empty-ids": (COMPLETIONS, completion_body([[]])),
    "unknown-id": (COMPLETIONS, completion_body([5, 999_999])),
    "negative-id": (COMPLETIONS, completion_body([5, -9])),
    "mixed-prompt": (COMPLETIONS, completion_body(["a", 5])),
    "prompt-a-number": (COMPLETIONS, completion_body(5)),
    "prompt-too-long": (COMPLETIONS, completion_body("word " * 40_000)),
    "ids-too-long": (COMPLETIONS, completion_body([5] * 20_000)),
    "ids-leave-no-room": (COMPLETIONS, completion_body([5] * MAX_MODEL_LEN)),
    "too-many-tokens": (COMPLETIONS, completion_body(max_tokens=100_000)),
    "no-tokens": (COMPLETIONS, completion_body(max_tokens=0)),
    "min-over-max": (COMPLETIONS, completion_body(min_tokens=10)),
    "min-negative": (COMPLETIONS, completion_body(min_tokens=-1)),
    "logprobs-many": (COMPLETIONS, completion_body(logprobs=50)),
    "logprobs-negative": (COMPLETIONS, completion_body(logprobs=-3)),
    "prompt-logprobs-negative": (COMPLETIONS, completion_body(prompt_logprobs=-4)),
    "prompt-logprobs-streamed": (COMPLETIONS, completion_body(prompt_logprobs=1, stream=True)),
    "suffix": (COMPLETIONS, completion_body(suffix="x")),
    "salt-empty": (COMPLETIONS, completion_body(cache_salt="")),
    "embeds": (COMPLETIONS, completion_body(prompt_embeds="x")),
    "truncate-more-than-all": (COMPLETIONS, completion_body(truncate_prompt_tokens=100_000)),
    "truncate-negative": (COMPLETIONS, completion_body(truncate_prompt_tokens=-2)),
    "n-0": (CHAT, chat_body(n=0)),
    "n-greedy": (CHAT, chat_body(n=2)),
    "n-a-fraction": (CHAT, chat_body(n=1.5)),
    "temperature-negative": (CHAT, chat_body(temperature=-3)),
    "temperature-high": (CHAT, chat_body(temperature=3)),
    "temperature-a-word": (CHAT, chat_body(temperature="hot")),
    "temperature-nan": (CHAT, b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN,"max_tokens":1}'),
    "top-p": (CHAT, chat_body(top_p=0)),
    "top-k": (CHAT, chat_body(top_k=-5)),
    "min-p": (CHAT, chat_body(min_p=2)),
    "presence-penalty": (CHAT, chat_body(presence_penalty=3)),
    "repetition-penalty": (CHAT, chat_body(repetition_penalty=0)),
    "bias-not-an-id": (CHAT, chat_body(logit_bias={"x": 1})),
    "seed-a-word": (CHAT, chat_body(seed="x")),
    "stop-a-number": (CHAT, chat_body(stop=5)),
    "stop-empty": (CHAT, chat_body(stop="")),
    "stop-many": (CHAT, chat_body(stop=["a", "b", "c", "d", "e"])),
    "stop-ids-words": (CHAT, chat_body(stop_token_ids=["a"])),
    "two-wrong": (CHAT, chat_body(max_tokens="x", temperature="y")),
    "priority-a-word": (CHAT, chat_body(priority="x")),
    "usage-unstreamed": (CHAT, chat_body(stream_options={"include_usage": True})),
    "stream-options-a-number": (CHAT, chat_body(stream=True, stream_options=5)),
    "stream-a-word": (CHAT, chat_body(stream="perhaps")),
    "top-logprobs-alone": (CHAT, chat_body(top_logprobs=2)),
    "top-logprobs-negative": (CHAT, chat_body(logprobs=True, top_logprobs=-2)),
    "top-logprobs-many": (CHAT, chat_body(logprobs=True, top_logprobs=50)),
    "model-unknown": (CHAT, chat_body(model="nope")),
    "model-a-number": (CHAT, chat_body(model=5)),
    "no-messages": (CHAT, {"model": SERVED_NAME}),
    "messages-empty": (CHAT, chat_body(messages=[])),
    "messages-a-number": (CHAT, chat_body(messages=7)),
    "image": (
        CHAT,
        chat_body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ),
    "both-continuations": (CHAT, chat_body(add_generation_prompt=True, continue_final_message=True)),
    "tools-empty": (CHAT, chat_body(tools=[])),
    "tools-a-number": (CHAT, chat_body(tools=5)),
    "tool-nameless": (CHAT, chat_body(tools=[{"type": "function"}])),
    "tool-choice-alone": (CHAT, chat_body(tool_choice="auto")),
    "tool-choice-odd": (CHAT, chat_body(tools=TOOLS["tools"], tool_choice="sometimes")),
    "tool-choice-unknown": (
        CHAT,
        chat_body(tools=TOOLS["tools"], tool_choice={"type": "function", "function": {"name": "nope"}}),
    ),
    "tool-choice-nameless": (CHAT, chat_body(tools=TOOLS["tools"], tool_choice={"type": "function"})),
    "schema-missing": (CHAT, chat_body(response_format={"type": "json_schema"})),
    "not-json": (CHAT, b"{nope"),
    "json-and-more": (CHAT, b'{"model": "tiny"} x'),
    "empty-body": (CHAT, b""),
    "null-body": (CHAT, b"null"),
    "list-body": (CHAT, b"[]"),
    "not-utf8": (CHAT, b'{"messages":"\xff"}'),
    "surrogate": (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}],"max_tokens":1}'),
    "responses-temperature": (RESPONSES, responses_body(temperature=-1)),
    "responses-too-many-tokens": (RESPONSES, responses_body(max_output_tokens=100_000)),
    "responses-no-tokens": (RESPONSES, responses_body(max_output_tokens=0)),
    "responses-input-empty": (RESPONSES, responses_body(input=[])),
    "responses-input-a-number": (RESPONSES, responses_body(input=5)),
    "responses-previous": (RESPONSES, responses_body(previous_response_id="resp_nope")),
    "responses-background": (RESPONSES, responses_body(background=True)),
    "responses-background-unstored": (RESPONSES, responses_body(background=True, store=False)),
    "responses-model": (RESPONSES, responses_body(model="nope")),
    "tokenize-nothing": ("/tokenize", {"model": SERVED_NAME}),
    "tokenize-a-number": ("/tokenize", {"model": SERVED_NAME, "prompt": 5}),
    "detokenize-nothing": ("/detokenize", {"model": SERVED_NAME}),
    "detokenize-negative": ("/detokenize", {"model": SERVED_NAME, "tokens": [-1]}),
    "unknown-path": ("/no/such/path", {"a": 1}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_have_the_same_words(engine: str, twin: str, name: str) -> None:
    real, ours = both(engine, twin, *REFUSED[name])
    assert real.status in {400, 404}, real
    assert ours.status == real.status
    assert ours.json() == real.json()


LOOSELY_REFUSED = {
    "role-a-number": (CHAT, chat_body(messages=[{"role": 3}])),
    "no-role": (CHAT, chat_body(messages=[{"content": "x"}])),
    "content-null": (CHAT, chat_body(messages=[{"role": "user", "content": None}])),
    "content-a-number": (CHAT, chat_body(messages=[{"role": "user", "content": 5}])),
    "form-odd": (CHAT, chat_body(response_format={"type": "nope"})),
    "schema-odd": (
        CHAT,
        chat_body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}),
    ),
    "responses-item-odd": (RESPONSES, responses_body(input=[{"type": "nope"}])),
    "n-huge": (COMPLETIONS, completion_body(n=100_000)),
    "media-type": (CHAT, None),
}


@pytest.mark.parametrize("name", LOOSELY_REFUSED)
def test_other_refusals_have_the_same_shape(engine: str, twin: str, name: str) -> None:
    """vLLM lists every kind of message or format that it is not; the twin says what is wrong."""
    path, body = LOOSELY_REFUSED[name]
    headers = {"content-type": "text/plain"} if body is None else None
    real, ours = (
        ask(url, "POST", path, json.dumps(chat_body()).encode() if body is None else body, headers)
        for url in (engine, twin)
    )
    assert (ours.status, real.status) == (400, 400), (ours.body, real.body)
    for answer in (real, ours):
        error = answer.json()["error"]
        assert list(error) == ["message", "type", "param", "code"] and error["code"] == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("GET", path)
            for path in ("/health", "/ping", "/load", "/v1/models", CHAT, "/nowhere", "/v1/responses/resp_x")
        ),
        *(("POST", path) for path in ("/ping", "/v1/responses/resp_x/cancel")),
        *(("DELETE", path) for path in ("/v1/models",)),
        *(("HEAD", path) for path in ("/health",)),
    ],
)
def test_other_routes(engine: str, twin: str, method: str, path: str) -> None:
    real, ours = both(engine, twin, path, None, method)
    assert ours.status == real.status
    assert ours.header("allow") == real.header("allow")
    assert ours.header("content-type") == real.header("content-type")
    assert bool(ours.body) == bool(real.body)
    if real.body:
        assert shape(ours.json()) == shape(real.json())


# --- with a client library ---


def client(url: str) -> openai.OpenAI:
    """An unmodified client."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def outcome(url: str, call: Callable[[openai.OpenAI], Any]) -> Any:
    """What a client gets, by shape, or what it raises."""
    with client(url) as asked:
        try:
            got = call(asked)
            if isinstance(got, openai.Stream):
                return [key for key, _ in groupby(shape(event.model_dump()) for event in got)]
            return type(got).__name__, shape(got.model_dump())
        except openai.APIStatusError as error:
            return type(error).__name__, error.status_code, error.code, error.param, error.type


CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(model=SERVED_NAME, messages=MESSAGES, max_tokens=4),
    "chat-stream": lambda c: c.chat.completions.create(
        model=SERVED_NAME, messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
    ),
    "completion": lambda c: c.completions.create(model=SERVED_NAME, prompt=[5, 6], max_tokens=4, logprobs=1),
    "responses": lambda c: c.responses.create(model=SERVED_NAME, input="hi", max_output_tokens=16),
    "models": lambda c: c.models.list(),
    "unknown-model": lambda c: c.chat.completions.create(model="nope", messages=MESSAGES),
    "bad-value": lambda c: c.chat.completions.create(model=SERVED_NAME, messages=MESSAGES, temperature=9),
}


@pytest.mark.parametrize("name", CALLS)
def test_openai_python_sees_no_difference(engine: str, twin: str, name: str) -> None:
    def steady(asked: openai.OpenAI) -> Any:
        return CALLS[name](asked.with_options(default_headers={"x-request-id": "the-same"}))

    assert outcome(twin, steady) == outcome(engine, steady)
