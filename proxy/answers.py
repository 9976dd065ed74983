"""What did an engine answer? The texts of an answer, out of its bytes.

A stream is read when it is over. vLLM's events are alike, so that the text of hundreds is cut out at once and decoded
once; whatever does not look exactly so is read event by event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from proxy.prompts import chat_message, content_text, part_text, tool_text

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""A longer answer is not looked at: that there was one is enough for its next turn to be found."""
_STRING = re.compile(rb'(?:[^"\\]|\\.)*', re.DOTALL)
_TEXT_BEGINS = (b'"index":0,"delta":{"content":"', b'"index":0,"text":"')
"""In an event of one choice, of chat and of completions, as vLLM writes them."""
_TOOLS = b'"tool_calls":[{'
_PARTIAL = "partial"
"""The JSON of a tool's arguments, as far as it has come."""
_DONE = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete)"')


def answer_texts(body: bytes, *, stream: bool) -> tuple[str, ...]:
    """What each choice says, from a whole answer's body: one JSON document, or server-sent events.

    A choice that calls tools has a text for all of it and one for its content alone. Empty choices are left out.
    Never raises: what is no answer has no texts."""
    if not stream:
        return document_texts(_read(body))
    if (text := _cut_out(body)) is not None:
        return (text,) if text else ()
    return event_texts(body)


def document_texts(answer: object) -> tuple[str, ...]:
    """The same of an answer that is read already."""
    if not isinstance(answer, dict):
        return ()
    texts: list[str] = []
    for choice in _objects(answer.get("choices")):
        if isinstance(message := choice.get("message"), dict):
            texts += _all_and_first(chat_message(message))
        elif isinstance(text := choice.get("text"), str):
            texts.append(text)
    for item in _objects(answer.get("output")):  # Responses: what follows has each as an item of its own
        if item.get("type") == "function_call":
            texts.append(tool_text(item.get("call_id"), item.get("name"), item.get("arguments")))
        elif item.get("type") == "message":
            texts.append(content_text(item.get("content")))
    if answer.get("type") == "message":  # Anthropic's
        texts += _blocks(_objects(answer.get("content")))
    return tuple([text for text in texts if text])


def event_texts(body: bytes) -> tuple[str, ...]:
    """The same of a stream, event by event."""
    if (done := list(_DONE.finditer(body))) and (found := _last_document(body, done[-1].start())):
        return found
    choices: dict[int, _Choice] = {}
    blocks: dict[int, dict[str, Any]] = {}
    deltas: dict[int, list[str]] = {}
    for event in _events(body):
        for number, choice in enumerate(_objects(event.get("choices"))):
            index = choice.get("index", number)
            if isinstance(index, int):
                choices.setdefault(index, _Choice()).add(choice)
        kind = event.get("type")
        if kind == "response.output_text.delta" and isinstance(text := event.get("delta"), str):
            index = event.get("output_index")
            deltas.setdefault(index if isinstance(index, int) else 0, []).append(text)
        elif isinstance(kind, str) and kind.startswith("content_block_"):
            _add_block(blocks, event)
    texts = [text for index in sorted(choices) for text in choices[index].texts()]
    texts += ["".join(parts) for parts in deltas.values()]
    texts += _blocks([blocks[index] for index in sorted(blocks)])
    return tuple([text for text in texts if text])


class _Choice:
    """What a choice's events say, put together."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._tools: dict[object, dict[str, str]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        """One event's part."""
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            if isinstance(text := choice.get("text"), str):
                self._content.append(text)
            return
        if isinstance(text := delta.get("content"), str):
            self._content.append(text)
        for number, call in enumerate(_objects(delta.get("tool_calls"))):
            index = call.get("index", number)
            tool = self._tools.setdefault(index if isinstance(index, int) else number, {})
            function = call.get("function")
            given = {"id": call.get("id"), **(function if isinstance(function, dict) else {})}
            for name in ("id", "name"):
                if isinstance(value := given.get(name), str):
                    tool[name] = value
            if isinstance(part := given.get("arguments"), str):
                tool["arguments"] = tool.get("arguments", "") + part

    def take(self, events: bytes) -> bool:
        """These events' parts; False if there is more than one choice's text."""
        for event in _events(events):
            for choice in _objects(event.get("choices")):
                self.add(choice)
                if choice.get("index") != 0 or self._tools:
                    return False
        return True

    def texts(self) -> list[str]:
        """As of a whole answer."""
        content = "".join(self._content)
        tools = [tool_text(tool.get("id"), tool.get("name"), tool.get("arguments")) for tool in self._tools.values()]
        return _all_and_first([content, *tools] if content else tools)


def _cut_out(body: bytes) -> str | None:
    """The text of a stream of one choice without tools, as vLLM sends it; None: read it event by event.

    What stands between two texts is the same each time. An end of line in it shows that it lies between two events,
    since there is none within JSON; and what is left is no string if it holds anything else.
    """
    for begins in _TEXT_BEGINS:
        head, *parts = body.split(begins)
        if len(parts) < 2 or (first := _STRING.match(parts[0])) is None:
            continue
        between, last = parts[0][first.end() :], parts.pop()
        size = len(between)
        texts = [part[:-size] for part in parts if part.endswith(between)]
        middle = _read(b'"%b"' % b"".join(texts))
        if len(texts) != len(parts) or between.count(b"\n") != 2 or _TOOLS in between or not isinstance(middle, str):
            return None
        event = head.rfind(b"\n") + 1
        around = _Choice()
        if not around.take(head[:event]) or around.texts() or not around.take(head[event:] + begins + last):
            return None
        return middle + "".join(around.texts())
    return None


def _last_document(body: bytes, at: int) -> tuple[str, ...]:
    """Of a Responses stream, the event that holds all of the answer."""
    start = body.rfind(b"\n", 0, at) + 1
    end = body.find(b"\n", at)
    event = _read(body[start : end if end >= 0 else len(body)].removeprefix(b"data:"))
    return document_texts(event.get("response")) if isinstance(event, dict) else ()


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith(b"data:") and isinstance(event := _read(line[5:]), dict):
            yield event


def _add_block(blocks: dict[int, dict[str, Any]], event: dict[str, Any]) -> None:
    """An event of Anthropic's: blocks begin, and grow by deltas."""
    index = event.get("index")
    if not isinstance(index, int):
        return
    if isinstance(block := event.get("content_block"), dict):
        blocks[index] = {name: value for name, value in block.items() if name != _PARTIAL}
    elif isinstance(delta := event.get("delta"), dict):
        block = blocks.setdefault(index, {"type": "text", "text": ""})
        if isinstance(text := delta.get("text"), str):
            block["text"] = (block["text"] if isinstance(block.get("text"), str) else "") + text
        if isinstance(part := delta.get("partial_json"), str):
            block[_PARTIAL] = block.get(_PARTIAL, "") + part


def _blocks(blocks: list[dict[str, Any]]) -> list[str]:
    """Anthropic's blocks as one message."""
    texts = []
    for block in blocks:
        if isinstance(partial := block.get(_PARTIAL), str) and partial:
            block = {**block, "input": _read(partial.encode("utf-8", "surrogatepass"))}
        if text := part_text(block):
            texts.append(text)
    return _all_and_first(texts)


def _all_and_first(texts: list[str]) -> list[str]:
    return texts if len(texts) < 2 else ["\n".join(texts), texts[0]]


def _objects(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _read(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
