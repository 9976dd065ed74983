"""The text of an answer: out of documents and streams of each API, the quick way and the slow one alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.answers import _cut_out, answer_texts, event_texts

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NASTY = st.sampled_from(
    ['"', "\\", '\\"', '"delta":{"content":"', '"index":0,"text":"', "\n\n", "data: ", "é", "😀", "\0"]
)
PARTS = st.lists(TEXTS | NASTY, max_size=20)
COMPACT: dict[str, Any] = {"separators": (",", ":")}


def compact(event: object) -> str:
    """As vLLM writes it."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def sse(events: list[dict[str, Any]], dump: Callable[[object], str] = compact) -> bytes:
    """A stream of these, ended as OpenAI's are."""
    lines = [f"data: {dump(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
    return "".join(lines).encode()


def chat_events(parts: list[str], index: int = 0) -> list[dict[str, Any]]:
    """A choice as vLLM streams it."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}

    first = chunk({"role": "assistant", "content": ""})
    return [first, *[chunk({"content": part}) for part in parts], chunk({}, "stop")]


def text_events(parts: list[str]) -> list[dict[str, Any]]:
    """A completion as vLLM streams it."""
    choices = [{"index": 0, "text": part, "logprobs": None, "finish_reason": None} for part in parts]
    return [{"id": "cmpl-1", "choices": [choice]} for choice in choices]


def joined(parts: list[str]) -> tuple[str, ...]:
    return ("".join(parts),) if any(parts) else ()


@given(PARTS, st.sampled_from([chat_events, text_events]), st.booleans())
def test_the_quick_way_says_what_the_slow_one_does(
    parts: list[str], events: Callable[[list[str]], list[dict[str, Any]]], ascii_only: bool
) -> None:
    usage = {"id": "1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    body = sse([*events(parts), usage], lambda event: json.dumps(event, ensure_ascii=ascii_only, **COMPACT))
    assert answer_texts(body, stream=True) == event_texts(body) == joined(parts)
    if len(parts) > 1:
        assert _cut_out(body) == "".join(parts)


@given(PARTS)
def test_events_that_are_spaced_are_read_as_well(parts: list[str]) -> None:
    assert answer_texts(sse(chat_events(parts), json.dumps), stream=True) == joined(parts)


@given(PARTS, PARTS)
def test_choices_are_told_apart(first: list[str], second: list[str]) -> None:
    pairs = zip_longest(chat_events(first), chat_events(second, 1))
    events = [event for pair in pairs for event in pair if event is not None]
    assert answer_texts(sse(events), stream=True) == joined(first) + joined(second)


@given(st.binary(max_size=200), st.booleans())
def test_bytes_that_are_no_answer_have_no_texts(body: bytes, stream: bool) -> None:
    assert isinstance(answer_texts(body, stream=stream), tuple)


NAMES = (
    *("choices", "index", "delta", "content", "tool_calls", "function", "arguments", "id", "name", "text", "type"),
    *("output", "message", "response", "content_block", "partial_json", "partial", "input", "output_index"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from(["response.output_text.delta", "content_block_start", "content_block_delta", "message"])


@given(st.lists(st.tuples(JSON, KINDS), max_size=4))
@example([({"content": [{"partial": True}]}, "message")])
def test_strange_events_raise_nothing(events: list[tuple[Any, str]]) -> None:
    strange = [{"type": kind, **each} if isinstance(each, dict) else {"choices": each} for each, kind in events]
    assert isinstance(answer_texts(sse(strange), stream=True), tuple)
    for each in strange:
        assert isinstance(answer_texts(compact(each).encode(), stream=False), tuple)


def test_a_tool_call_is_a_text_and_the_content_another() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
    message = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    whole = compact({"choices": [{"index": 0, "message": message}]}).encode()
    expected = ('I look.\ncall_1 look {"at": "sea"}', "I look.")
    assert answer_texts(whole, stream=False) == expected
    parts = ['{"at"', ': "sea"}']
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "I "}, {"content": "look."}]
    deltas.append({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "look", "arguments": ""}}]})
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    assert answer_texts(sse(events), stream=True) == expected
    both = [{"choices": [{"index": 0, "delta": {"content": "I look.", "tool_calls": [{"index": 0, **call}]}}]}]
    assert answer_texts(sse(both), stream=True) == expected


@pytest.mark.parametrize("message", [None, {}, {"content": None}, {"content": 3}, {"content": [], "tool_calls": 1}])
def test_a_choice_that_says_nothing_is_left_out(message: object) -> None:
    assert answer_texts(compact({"choices": [{"message": message}]}).encode(), stream=False) == ()


def test_responses() -> None:
    answer = {
        "object": "response",
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]},
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        ],
    }
    expected = ("Yes.", "c look {}")
    assert answer_texts(compact(answer).encode(), stream=False) == expected
    delta = {"type": "response.output_text.delta", "output_index": 1, "delta": "Ye"}
    end = {"type": "response.completed", "response": answer}
    stream = f"event: x\ndata: {compact(delta)}\n\nevent: y\ndata: {compact(end)}\n\n".encode()
    assert answer_texts(stream, stream=True) == expected
    assert answer_texts(f"data: {compact(delta)}\n\n".encode(), stream=True) == ("Ye",)


@pytest.mark.parametrize("dump", [compact, json.dumps])
def test_messages(dump: Callable[[object], str]) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"b": 1, "a": [2]}}
    answer = {
        "type": "message",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So."}, use],
    }
    expected = ('So.\ntoolu_1 look {"a":[2],"b":1}', "So.")
    assert answer_texts(dump(answer).encode(), stream=False) == expected
    events: list[dict[str, Any]] = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "S"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "o."}},
        {"type": "content_block_start", "index": 1, "content_block": {**use, "input": {}}},
    ]
    for part in ('{"b": 1,', '"a": [2]}'):
        delta = {"type": "input_json_delta", "partial_json": part}
        events.append({"type": "content_block_delta", "index": 1, "delta": delta})
    assert answer_texts(sse(events, dump), stream=True) == expected
