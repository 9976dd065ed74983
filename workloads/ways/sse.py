"""What does a streamed chat completion come to? The document that it would have been without streaming.

Its bytes are gathered as they come and read when they are all there: with thousands of streams, reading each event
as it comes would make the client late for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader

_DONE = b"[DONE]"


class StreamFault(Exception):
    """A stream that ended with an error, or before its end."""


async def read_stream(content: StreamReader, clock: Callable[[], float]) -> tuple[dict[str, Any], float | None]:
    """(document, when its first piece came). StreamFault."""
    pieces: list[bytes] = []
    first_at: float | None = None
    while piece := await content.readany():
        if first_at is None and b"data:" in piece:
            first_at = clock()
        pieces.append(piece)
    return document_of(b"".join(pieces)), first_at


def document_of(body: bytes) -> dict[str, Any]:
    """A chat completion from its events. StreamFault, ValueError for what is no JSON."""
    text: list[str] = []
    usage: Any = None
    finish: Any = None
    done = False
    for line in body.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == _DONE:
            done = True
            continue
        event = orjson.loads(data)
        if "error" in event:
            raise StreamFault(f"the stream ended with an error: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            text.append(choice.get("delta", {}).get("content") or "")
            finish = choice.get("finish_reason") or finish
    if not done:
        raise StreamFault("the stream broke off before its end")
    return {"choices": [{"message": {"content": "".join(text)}, "finish_reason": finish}], "usage": usage}
