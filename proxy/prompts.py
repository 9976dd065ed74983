"""What does a request say? Its messages as (role, text), whichever API it speaks.

Only what is compared: texts, tool calls and their results. Of an image or a file there is a mark that tells it from
others, and no more. The tools that are offered are left out. Linear in the body, which has limits of its own.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Segment = tuple[str, str]

MESSAGES_MAX = 4096
"""A request with more has no segments: it is no conversation."""
_MARK_CHARACTERS = 96
_DEPTH_MAX = 2
_TEXTS = ("text", "input_text", "output_text", "refusal")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
"""Not compared: some clients send them back and some do not."""


def segments(route_label: str, body: dict[str, Any]) -> list[Segment]:
    """The prompt's messages in order; [] for a route without one. Never raises: what is strange is left out.

    A completion's prompt is a bare text, with the role "", or several. Token ids have the role "tokens" and an alphabet
    of their own: equal beginnings are seen to be equal, but no output, which is text, is found in them.
    """
    read = _ROUTES.get(route_label)
    if read is None:
        return []
    found = read(body)
    return found if len(found) <= MESSAGES_MAX else []


def tool_text(call_id: object, name: object, arguments: object) -> str:
    """A tool call as a text: in an answer and where a client sends it back. The id, which the engine drew, makes it
    one of its kind."""
    if not isinstance(arguments, str):
        try:
            arguments = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()
        except (TypeError, ValueError):
            arguments = ""
    return " ".join([part for part in (call_id, name, arguments) if isinstance(part, str)])


def chat_message(message: dict[str, Any]) -> list[str]:
    """A message's texts: its content, and each call of a tool."""
    texts = []
    if content := content_text(message.get("content")):
        texts.append(content)
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, dict):
            texts.append(tool_text(call.get("id"), function.get("name"), function.get("arguments")))
    return texts


def content_text(content: object, depth: int = 0) -> str:
    """What stands in a content: a string, or parts, one a line. "" for anything else."""
    if isinstance(content, str):
        return content
    return "\n".join([text for part in _dicts(content, strings=True) if (text := part_text(part, depth))])


def part_text(part: dict[str, Any], depth: int = 0) -> str:
    """What a part of a content says, or a mark for one that is no text. Results of tools hold parts again."""
    kind = part.get("type", "text")
    if kind in _TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        return text if isinstance(text, str) else ""
    if kind in _THOUGHTS:
        return ""
    if kind == "tool_use":
        return tool_text(part.get("id"), part.get("name"), part.get("input"))
    if kind == "tool_result":
        return content_text(part.get("content"), depth + 1) if depth < _DEPTH_MAX else ""
    return _mark(part)


def _mark(part: dict[str, Any]) -> str:
    """Of what is no text: its kind, length and end, which tell two images apart without comparing them."""
    try:
        data = orjson.dumps(part, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        return ""
    return f"[{len(data)} {data[-_MARK_CHARACTERS:].decode('utf-8', 'replace')}]"


def _chat(body: dict[str, Any]) -> list[Segment]:
    return [(_role(message), "\n".join(chat_message(message))) for message in _dicts(body.get("messages"))]


def _completions(body: dict[str, Any]) -> list[Segment]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [("", prompt)]
    if not isinstance(prompt, list) or not prompt:
        return []
    if isinstance(prompt[0], int):
        prompt = [prompt]
    found: list[Segment] = []
    for one in prompt:
        if isinstance(one, str):
            found.append(("", one))
        elif isinstance(one, list):
            try:
                found.append(("tokens", array("I", one).tobytes().decode("latin-1")))
            except (TypeError, ValueError, OverflowError):
                continue  # the engine will refuse it
    return found


def _responses(body: dict[str, Any]) -> list[Segment]:
    found: list[Segment] = []
    if isinstance(instructions := body.get("instructions"), str):
        found.append(("system", instructions))
    given = body.get("input")
    if isinstance(given, str):
        found.append(("user", given))
        return found
    for item in _dicts(given):
        kind = item.get("type", "message")
        if kind == "message":
            found.append((_role(item), content_text(item.get("content"))))
        elif kind == "function_call":
            found.append(("assistant", tool_text(item.get("call_id"), item.get("name"), item.get("arguments"))))
        elif kind == "function_call_output":
            found.append(("tool", content_text(item.get("output"))))
    return found


def _messages(body: dict[str, Any]) -> list[Segment]:
    system = content_text(body.get("system"))
    found: list[Segment] = [("system", system)] if system else []
    found += [(_role(message), content_text(message.get("content"))) for message in _dicts(body.get("messages"))]
    return found


def _role(message: dict[str, Any]) -> str:
    role = message.get("role")
    return role if isinstance(role, str) and role else "user"


def _dicts(items: object, *, strings: bool = False) -> Iterable[dict[str, Any]]:
    """Those of a list that are objects; bare strings, which some clients send as parts, as texts."""
    if not isinstance(items, list):
        return ()
    if strings:
        items = [{"text": item} if isinstance(item, str) else item for item in items]
    return [item for item in items if isinstance(item, dict)]


_ROUTES: dict[str, Callable[[dict[str, Any]], list[Segment]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}
