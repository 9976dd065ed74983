"""The Anthropic SDK talks through the gateway to vLLM's /v1/messages."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.vllm.children import SERVED_NAME

ASK: dict[str, Any] = {
    "model": SERVED_NAME,
    "messages": [{"role": "user", "content": "Tell me about os.path"}],
    "max_tokens": 8,
    "extra_body": {"temperature": 0},
}


def client(base_url: str, prefix: str = "") -> Anthropic:
    """A client as users make it; no retries, so that an error is seen."""
    return Anthropic(base_url=f"{base_url}{prefix}", api_key="none", max_retries=0, timeout=60)


def said(message: Any) -> dict[str, Any]:
    """The message without its id."""
    dumped: dict[str, Any] = message.model_dump(exclude={"id"})
    return dumped


def test_create(engine: str, gateway: str) -> None:
    direct, through = (said(client(base).messages.create(**ASK)) for base in (engine, gateway))
    assert through == direct
    assert through["content"][0]["text"] and through["usage"]["output_tokens"] == 8


def test_stream(engine: str, gateway: str) -> None:
    results = []
    for base in (engine, gateway):
        with client(base).messages.stream(**ASK) as stream:
            text = "".join(stream.text_stream)
            results.append((text, said(stream.get_final_message())))
    assert results[1] == results[0]
    assert results[1][0]


def test_stream_of_raw_events(engine: str, gateway: str) -> None:
    kinds = [[event.type for event in client(base).messages.create(**ASK, stream=True)] for base in (engine, gateway)]
    for seen in kinds:
        assert seen[0] == "message_start" and seen[-1] == "message_stop"
    direct, through = ([kind for kind in seen if kind != "content_block_delta"] for seen in kinds)
    assert through == direct


def test_count_tokens(engine: str, gateway: str) -> None:
    asked: dict[str, Any] = {"model": SERVED_NAME, "messages": ASK["messages"]}
    direct, through = (client(base).messages.count_tokens(**asked) for base in (engine, gateway))
    assert through.input_tokens == direct.input_tokens > 0


def test_system_and_turns(engine: str, gateway: str) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    asked = ASK | {"messages": turns, "system": "Be brief."}
    direct, through = (said(client(base).messages.create(**asked)) for base in (engine, gateway))
    assert through == direct


def test_workflow_named_by_the_base_url(gateway: str) -> None:
    raw = client(gateway, "/w/claude-1").messages.with_raw_response.create(**ASK)
    assert raw.headers["x-workflow-id"] == "claude-1"
    assert said(raw.parse()) == said(client(gateway).messages.create(**ASK))


def test_claude_code_session_is_the_workflow(gateway: str) -> None:
    extra = {"x-claude-code-session-id": "5f0c7a1e"}
    raw = client(gateway).messages.with_raw_response.create(**ASK, extra_headers=extra)
    assert raw.headers["x-workflow-id"] == "5f0c7a1e"


def test_error_is_raised_as_from_vllm(engine: str, gateway: str) -> None:
    raised = []
    for base in (engine, gateway):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client(base).messages.create(**ASK | {"max_tokens": 0})
        raised.append((caught.value.status_code, caught.value.body))
    assert raised[1] == raised[0]
