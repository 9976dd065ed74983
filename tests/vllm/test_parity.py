"""Every route asked through the gateway answers as vLLM itself does: status, reason, headers, body."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from tests.vllm.children import MAX_MODEL_LEN, SERVED_NAME
from tests.vllm.wire import Answer, ask, chat_body, connect

MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the status that vLLM itself gives it."""

    name: str
    method: str
    path: str
    body: Any
    status: int


def anthropic_body(**more: Any) -> dict[str, Any]:
    """A request to /v1/messages."""
    return {"model": SERVED_NAME, "messages": MESSAGES, "max_tokens": 4, "temperature": 0, **more}


def responses_body(**more: Any) -> dict[str, Any]:
    """A request to /v1/responses."""
    return {"model": SERVED_NAME, "input": "hi", "max_output_tokens": 4, "temperature": 0, **more}


def completion_body(prompt: Any = "def f", **more: Any) -> dict[str, Any]:
    """A request to /v1/completions."""
    return {"model": SERVED_NAME, "prompt": prompt, "max_tokens": 4, "temperature": 0, **more}


TOOLS: dict[str, Any] = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "add",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {"flag": {"type": "boolean"}},
                    "required": ["flag"],
                    "additionalProperties": False,
                },
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "max_tokens": 40,
}
"""A tool whose call even a random model gets right, because vLLM leaves it no other way."""

ANSWERED = [
    Case("chat", "POST", "/v1/chat/completions", chat_body(), 200),
    Case("chat-not-ascii", "POST", "/v1/chat/completions", chat_body("größer 你好 \U0001f600"), 200),
    Case("chat-escaped", "POST", "/v1/chat/completions", json.dumps(chat_body("ü\n\t\\")).encode(), 200),
    Case(
        "chat-raw-utf8", "POST", "/v1/chat/completions", json.dumps(chat_body("ü你"), ensure_ascii=False).encode(), 200
    ),
    Case("chat-logprobs", "POST", "/v1/chat/completions", chat_body(logprobs=True, top_logprobs=2), 200),
    Case("chat-two-choices", "POST", "/v1/chat/completions", chat_body(n=2, temperature=0.5, seed=7), 200),
    Case("chat-not-streamed-by-name", "POST", "/v1/chat/completions", chat_body(stream=False), 200),
    Case("chat-tool-call", "POST", "/v1/chat/completions", chat_body(**TOOLS), 200),
    Case("chat-unknown-field", "POST", "/v1/chat/completions", chat_body(no_such_field={"a": [1]}), 200),
    Case("chat-query-string", "POST", "/v1/chat/completions?a=b&c", chat_body(), 200),
    Case("completion", "POST", "/v1/completions", completion_body(), 200),
    Case("completion-two-prompts", "POST", "/v1/completions", completion_body(["def f", "class A"]), 200),
    Case("completion-token-ids", "POST", "/v1/completions", completion_body([5, 6, 7], echo=True), 200),
    Case("responses", "POST", "/v1/responses", responses_body(), 200),
    Case("messages", "POST", "/v1/messages", anthropic_body(), 200),
    Case("count-tokens", "POST", "/v1/messages/count_tokens", {"model": SERVED_NAME, "messages": MESSAGES}, 200),
    Case("tokenize", "POST", "/tokenize", {"model": SERVED_NAME, "prompt": "def f"}, 200),
    Case("detokenize", "POST", "/detokenize", {"model": SERVED_NAME, "tokens": [5, 6, 7]}, 200),
    Case("models", "GET", "/v1/models", None, 200),
    Case("health", "GET", "/health", None, 200),
    Case("version", "GET", "/version", None, 200),
    Case("load", "GET", "/load", None, 200),
    Case("ping", "GET", "/ping", None, 200),
    Case("openapi", "GET", "/openapi.json", None, 200),
    Case("openapi-head", "HEAD", "/openapi.json", None, 200),
    Case("docs-page", "GET", "/docs", None, 200),
]
REFUSED = [
    Case("embeddings", "POST", "/v1/embeddings", {"model": SERVED_NAME, "input": "hi"}, 404),
    Case("rerank", "POST", "/v1/rerank", {"model": SERVED_NAME, "query": "a", "documents": ["b"]}, 404),
    Case("score", "POST", "/v1/score", {"model": SERVED_NAME, "text_1": "a", "text_2": "b"}, 404),
    Case("unknown-path", "GET", "/no/such/path?x=1", None, 404),
    Case("unknown-path-post", "POST", "/no/such/path", {"a": 1}, 404),
    Case("wrong-method", "GET", "/v1/chat/completions", None, 405),
    Case("delete", "DELETE", "/v1/models", None, 405),
    Case("bad-temperature", "POST", "/v1/chat/completions", chat_body(temperature=-3), 400),
    Case("too-many-tokens-asked", "POST", "/v1/chat/completions", chat_body(max_tokens=10 * MAX_MODEL_LEN), 400),
    Case("too-long-prompt", "POST", "/v1/chat/completions", chat_body("word " * 40_000), 400),
    Case("messages-not-a-list", "POST", "/v1/chat/completions", chat_body() | {"messages": 7}, 400),
    Case("role-not-a-string", "POST", "/v1/chat/completions", chat_body() | {"messages": [{"role": 3}]}, 400),
    Case("tokens-not-a-number", "POST", "/v1/chat/completions", chat_body() | {"max_tokens": "many"}, 400),
    Case(
        "usage-without-stream", "POST", "/v1/chat/completions", chat_body(stream_options={"include_usage": True}), 400
    ),
    Case("no-prompt", "POST", "/v1/completions", {"model": SERVED_NAME, "max_tokens": 1}, 400),
    Case("bad-responses", "POST", "/v1/responses", responses_body(temperature=-1), 400),
    Case("messages-no-max-tokens", "POST", "/v1/messages", {"model": SERVED_NAME, "messages": MESSAGES}, 400),
]


def both(engine: str, gateway: str, case: Case, headers: dict[str, str] | None = None) -> tuple[Answer, Answer]:
    """The same request to vLLM and to the gateway, with one x-request-id, so that vLLM's ids are the same too."""
    sent = {"x-request-id": uuid.uuid4().hex, **(headers or {})}
    direct = ask(engine, case.method, case.path, case.body, sent)
    through = ask(gateway, case.method, case.path, case.body, sent)
    assert direct.status == case.status, f"vLLM itself changed: {direct}"
    return direct, through


@pytest.mark.parametrize("case", [*ANSWERED, *REFUSED], ids=lambda case: case.name)
def test_same_answer_as_vllm(engine: str, gateway: str, case: Case) -> None:
    direct, through = both(engine, gateway, case)
    assert (through.status, through.reason) == (direct.status, direct.reason), through
    assert through.comparable_body == direct.comparable_body
    assert through.comparable_headers == direct.comparable_headers
    assert through.header("x-request-id") == direct.header("x-request-id")


def test_unknown_model_is_refused_with_openais_error_shape(engine: str, gateway: str) -> None:
    """The gateway knows the engines' models and may refuse by itself; a client's library must read it the same way."""
    body = chat_body() | {"model": "no-such-model"}
    through = ask(gateway, "POST", "/v1/chat/completions", body)
    assert through.status == ask(engine, "POST", "/v1/chat/completions", body).status == 404
    error = through.json()["error"]
    assert "no-such-model" in error["message"]
    assert error["type"] and "code" in error and "param" in error


def test_models_keeps_max_model_len(gateway: str) -> None:
    [model] = ask(gateway, "GET", "/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (SERVED_NAME, MAX_MODEL_LEN)


def test_cross_origin_preflight_is_vllms(engine: str, gateway: str) -> None:
    headers = {"origin": "http://a.example", "access-control-request-method": "POST"}
    case = Case("preflight", "OPTIONS", "/v1/chat/completions", None, 400)
    direct, through = both(engine, gateway, case, headers)
    assert direct.header("access-control-allow-methods"), "vLLM did not take it for a preflight"
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.comparable_headers == direct.comparable_headers


def test_workflow_prefix_of_the_path_is_taken_off(engine: str, gateway: str) -> None:
    headers = {"x-request-id": uuid.uuid4().hex}
    direct = ask(engine, "POST", "/v1/chat/completions", chat_body(), headers)
    through = ask(gateway, "POST", "/w/my-id/v1/chat/completions", chat_body(), headers)
    assert (through.status, through.comparable_body) == (direct.status, direct.comparable_body)
    assert through.header("x-workflow-id") == "my-id"


def test_request_id_given_is_vllms_id_and_echoed(gateway: str) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat_body(), {"x-request-id": "asked-for-1"})
    assert answer.json()["id"] == "chatcmpl-asked-for-1"
    assert [value for key, value in answer.headers if key.lower() == "x-request-id"] == ["asked-for-1"]


def test_request_id_not_given_is_made_and_echoed(gateway: str) -> None:
    first, second = (ask(gateway, "POST", "/v1/chat/completions", chat_body()) for _ in range(2))
    for answer in (first, second):
        [request_id] = [value for key, value in answer.headers if key.lower() == "x-request-id"]
        assert answer.json()["id"] == f"chatcmpl-{request_id}"
    assert first.json()["id"] != second.json()["id"]


def test_own_fields_are_echoed_and_do_not_change_the_answer(engine: str, gateway: str) -> None:
    headers = {"x-request-id": uuid.uuid4().hex}
    plain = ask(engine, "POST", "/v1/chat/completions", chat_body(), headers)
    told = chat_body(workflow={"id": "job-7", "node": "plan", "after": ["fetch"], "deadline_ms": 60_000})
    through = ask(gateway, "POST", "/v1/chat/completions", told, headers)
    assert through.comparable_body == plain.comparable_body
    assert through.header("x-workflow-id") == "job-7"
    assert through.header("x-workflow-node") == "plan"
    assert through.header("x-joulegate-decision")


def test_many_calls_over_one_connection(engine: str, gateway: str) -> None:
    """Keep-alive on the client's side, answers and streams by turns."""
    expected = ask(engine, "POST", "/v1/chat/completions", chat_body()).json()["choices"]
    connection = connect(gateway)
    socket_used = None
    for turn in range(6):
        body = chat_body(stream=turn % 2 == 1)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        socket_used = socket_used or connection.sock
        assert connection.sock is socket_used, "the gateway closed the connection between two calls"
        received = connection.getresponse().read()
        if turn % 2:
            assert received.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(received)["choices"] == expected
    connection.close()
