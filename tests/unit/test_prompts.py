"""What a request says, in each API's own form; and that nothing strange in it raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.prompts import MESSAGES_MAX, segments

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    *("/v1/chat/completions", "/v1/completions"),
    *("/v1/responses", "/v1/messages"),
)
TOOL_USE = {"type": "tool_use", "id": "t", "name": "n", "input": {"b": 1, "a": 2}}
USE = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea"}'}}


def image(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        (
            CHAT,
            {"messages": [{"role": "system", "content": "Be."}, {"content": "Hi"}]},
            [("system", "Be."), ("user", "Hi")],
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]}, [("user", "a\nb")]),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [USE]}]},
            [("assistant", 'call_1 look {"at":"sea"}')],
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "So", "tool_calls": [USE]}]},
            [("assistant", 'So\ncall_1 look {"at":"sea"}')],
        ),
        (CHAT, {"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "wet"}]}, [("tool", "wet")]),
        (COMPLETIONS, {"prompt": "Once"}, [("", "Once")]),
        (COMPLETIONS, {"prompt": ["Once", "Twice"]}, [("", "Once"), ("", "Twice")]),
        (COMPLETIONS, {"prompt": [65, 66]}, [("tokens", "A\0\0\0B\0\0\0")]),
        (COMPLETIONS, {"prompt": [[65], [66]]}, [("tokens", "A\0\0\0"), ("tokens", "B\0\0\0")]),
        (RESPONSES, {"instructions": "Be.", "input": "Hi"}, [("system", "Be."), ("user", "Hi")]),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
                    {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "wet"},
                ]
            },
            [("user", "Hi"), ("assistant", "Yes."), ("assistant", "c look {}"), ("tool", "wet")],
        ),
        (
            MESSAGES,
            {
                "system": [{"type": "text", "text": "Be.", "cache_control": {"type": "ephemeral"}}],
                "messages": [
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, TOOL_USE]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "wet"}]},
                ],
            },
            [("system", "Be."), ("assistant", 't n {"a":2,"b":1}'), ("user", "wet")],
        ),
        ("/v1/embeddings", {"input": "Hi"}, []),
        (CHAT, {}, []),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * (MESSAGES_MAX + 1)}, []),
    ],
)
def test_each_api(route: str, body: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert segments(route, body) == expected


def test_images_are_marks_that_differ() -> None:
    one, other = ({"messages": [{"role": "user", "content": [image(data)]}]} for data in ("A" * 9000, "A" * 8999 + "B"))
    assert segments(CHAT, one) != segments(CHAT, other)
    assert segments(CHAT, one) == segments(CHAT, one)
    assert len(segments(CHAT, one)[0][1]) < 200


def test_results_within_results_end_somewhere() -> None:
    content: Any = "deep"
    for _ in range(5000):
        content = [{"type": "tool_result", "content": content}]
    assert segments(MESSAGES, {"messages": [{"role": "user", "content": content}]}) == [("user", "")]


NAMES = (
    *("messages", "role", "content", "tool_calls", "function", "arguments", "id", "name", "type", "text", "prompt"),
    *("instructions", "input", "system", "output", "call_id", "thinking", "image_url"),
)
KINDS = ("text", "tool_use", "tool_result", "image_url", "message", "function_call", "function_call_output", "thinking")
STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(KINDS) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@given(st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES]), st.dictionaries(st.sampled_from(NAMES), STRANGE))
def test_what_is_strange_raises_nothing(route: str, body: dict[str, Any]) -> None:
    for role, text in segments(route, body):
        assert isinstance(role, str)
        assert isinstance(text, str)
