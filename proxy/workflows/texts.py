"""What text did a model write? From a whole answer, and from a stream's events as they come."""

from __future__ import annotations

from typing import Any

import orjson


def whole_text(endpoint: str, body: bytes) -> str | None:
    """The text of an answer (of its first choice); tool calls without text as JSON. None: there is none in it."""
    try:
        document = orjson.loads(body)
        if endpoint == "/v1/responses":
            return _response_text(document)
        choice = document["choices"][0]
        if endpoint == "/v1/completions":
            text = choice["text"]
        else:
            message = choice["message"]
            text = message.get("content")
            if text is None and message.get("tool_calls"):
                text = orjson.dumps(message["tool_calls"]).decode()
            elif text is None:
                text = ""  # all of it was reasoning
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return text if isinstance(text, str) else None


def _response_text(document: dict[str, Any]) -> str:
    return "".join(
        [
            part["text"]
            for item in document["output"]
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "output_text"
        ]
    )


class DeltaReader:
    """The text in a stream's events, which are fed whole. `error`: what the stream says went wrong."""

    def __init__(self, endpoint: str) -> None:
        self._responses = endpoint == "/v1/responses"
        self._tools: dict[int, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None

    def feed(self, events: bytes) -> str:
        """What these events add to the text."""
        texts: list[str] = []
        for line in events.split(b"\n"):
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                continue
            try:
                texts.append(self._text(orjson.loads(data)))
            except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
                continue  # an event of another kind
        return "".join(texts)

    def rest(self) -> str:
        """At the end: tool calls as JSON, as in a whole answer."""
        return orjson.dumps([self._tools[at] for at in sorted(self._tools)]).decode() if self._tools else ""

    def _text(self, event: dict[str, Any]) -> str:
        if "error" in event and isinstance(event["error"], dict):
            self.error = event["error"]
            return ""
        if self._responses:
            return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""
        for choice in event["choices"]:
            if choice["index"] == 0:
                if "text" in choice:
                    return choice["text"] or ""
                delta = choice["delta"]
                for call in delta.get("tool_calls") or ():
                    self._add_tool(call)
                return delta.get("content") or ""
        return ""

    def _add_tool(self, piece: dict[str, Any]) -> None:
        call = self._tools.setdefault(piece["index"], {"id": None, "type": "function", "function": {}})
        call["id"] = piece.get("id") or call["id"]
        for name, text in (piece.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (text or "")
