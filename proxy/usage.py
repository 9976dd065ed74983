"""How many tokens did a call use? Read from the engine's own words while they pass; and taken out of a stream where the
client did not ask for them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT_BYTES_MAX = 1 << 20
"""An event may be so long before it is passed on in parts (and no longer looked into)."""
TAIL_BYTES = 4096
"""A usage object is found even when reads cut it in two, if it is shorter than this."""

# A usage object has at most one level of objects inside. Inside JSON strings a quote is escaped, so text that a model
# writes can never look like `"usage":`.
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_WHOLE_USAGE = re.compile(rb'"choices"\s*:\s*\[\s*\]|"type"\s*:\s*"(?:response\.completed|message_delta)"')
"""An event whose usage is the whole stream's: OpenAI's chat and completions, its Responses, Anthropic's messages."""
_FINGERPRINT = re.compile(rb'"system_fingerprint"\s*:\s*"[^"\\]*"')
_ENDS_CHOICE = b'"finish_reason":"'
_ERROR_EVENT = re.compile(
    rb'^(?:event: ?error\r?$|data: ?\{\s*"(?:error"\s*:\s*[{"]|(?:object|type)"\s*:\s*"(?:error|response\.failed)"))',
    re.MULTILINE,
)
"""vLLM's chat and completions (`error` first, or `object` of that name), Anthropic's messages, OpenAI's Responses."""
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class Usage:
    """What was read so far; None = the engine did not say."""

    __slots__ = ("cached_tokens", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.output_tokens: int | None = None

    def read(self, data: bytes) -> None:
        """Take over every usage object in these bytes; a later figure replaces an earlier one."""
        for match in _USAGE.finditer(data):
            self.take(match[1])

    def read_last(self, data: bytes) -> None:
        """Take over the last usage object of a document: it is the answer's own, and found from the end at once."""
        at = data.rfind(b'"usage"')
        while at >= 0:
            if (match := _USAGE.match(data, at)) is not None:
                self.take(match[1])
                return
            at = data.rfind(b'"usage"', 0, at)  # it was a text of that word, such as a token's

    def take(self, data: bytes) -> None:
        """Take over one usage object: OpenAI's chat and completions names, its Responses names, or Anthropic's (whose
        input excludes the cache)."""
        try:
            usage: dict[str, Any] = orjson.loads(data)
        except orjson.JSONDecodeError:
            return  # not JSON after all: the engine's business, and its bytes are passed on as they are
        prompt = usage.get("prompt_tokens")
        if type(prompt) is int:
            self.prompt_tokens = prompt
        elif type(prompt := usage.get("input_tokens")) is int:
            cached = usage.get("cache_read_input_tokens")
            if type(cached) is int:
                self.cached_tokens = cached
                created = usage.get("cache_creation_input_tokens")
                prompt += cached + (created if type(created) is int else 0)
            self.prompt_tokens = prompt
        output = usage.get("completion_tokens", usage.get("output_tokens"))
        if type(output) is int:
            self.output_tokens = output
        elif prompt is not None and "total_tokens" in usage and output is None:
            self.output_tokens = 0  # embeddings, scores: vLLM counts a prompt and nothing else
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        if isinstance(details, dict) and type(details.get("cached_tokens")) is int:
            self.cached_tokens = details["cached_tokens"]


class PlainReader:
    """Looks for the usage in an answer that is one JSON document; its bytes pass unchanged."""

    __slots__ = ("_tail", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Look at some bytes; returns what the client gets of them."""
        window = self._tail + data if self._tail else data
        self.usage.read_last(window)
        self._tail = window[-TAIL_BYTES:]
        return data

    def end(self) -> bytes:
        """What is still to be passed on at the end."""
        return b""


class EventReader:
    """Passes a stream of server-sent events on, whole events at a time, and keeps its usage.

    Only whole events, so that an error event can follow at any time, and no character is cut in two. `take_out`: the
    client did not ask for usage; the event that carries it and no choices is not passed on.

    vLLM's `system_fingerprint` stands in the usage event if there is one, else in the events that end a choice: taking
    the one out means putting the other in. `fingerprint` is what the engine said before (b"" = it has none); with None,
    the first event that ends a choice waits for the usage event, which vLLM sends right behind the last of them.
    """

    __slots__ = (
        "_annotate", "_first", "_last", "_partial", "_waiting", "fingerprint", "has_error", "take_out", "usage"
    )  # fmt: skip

    def __init__(
        self, *, take_out: bool, fingerprint: bytes | None = None, annotate: Callable[[Usage], bytes] | None = None
    ) -> None:
        """`annotate`: what is put behind the members of the stream's usage, as `,"name":value…`; only where the client
        asked for it."""
        self.usage = Usage()
        self._annotate = annotate
        self.take_out = take_out
        self.fingerprint = fingerprint
        self.has_error = False
        """The engine said in the stream that it failed: an answer of status 200 is none then."""
        self._partial = b""
        self._waiting: list[bytes] = []
        self._first = b""
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        """Look at some bytes; returns what the client gets now."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if not data.endswith((b"\n\n", b"\n\r\n")):
            cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
            cut = cut if cut > 2 else 0
            if len(data) - cut > EVENT_BYTES_MAX:
                return data
            self._partial = data[cut:]
            data = data[:cut]
        if b'error"' in data and _ERROR_EVENT.search(data):
            self.has_error = True
        if self.take_out:
            if b'"usage"' in data or _ENDS_CHOICE in data or self._waiting:
                return self._take_out(data)
        elif (
            b'"usage"' in data
        ):  # with continuous usage every event has one: the first and the last are read, at the end
            if not self._first:
                self._first = data
            else:
                self._last = data
            if self._annotate is not None and _WHOLE_USAGE.search(data):
                return self._annotated(data, self._annotate)
        return data

    def _annotated(self, data: bytes, annotate: Callable[[Usage], bytes]) -> bytes:
        """The event with the whole stream's usage says more than the engine did."""
        usage, found = Usage(), None
        usage.read(self._first)  # Anthropic's stream says the input first and the output last
        for found in _USAGE.finditer(data):
            usage.take(found[1])
        if found is None or found[1] == b"{}":
            return data
        end = found.end(1) - 1
        return b"%b%b%b" % (data[:end], annotate(usage), data[end:])

    def end(self) -> bytes:
        """What is left to pass on; and reads the usage."""
        for data in (self._first, self._last):  # Anthropic's stream says the input first and the output last
            self.usage.read(data)
        rest = b"".join([*self._waiting, self._partial])
        self._waiting, self._partial = [], b""
        return rest

    def cut(self) -> bytes:
        """The answer was cut off: whole events that wait to be passed on. What there is of another is nobody's."""
        self._partial = b""
        return self.end()

    def _take_out(self, data: bytes) -> bytes:
        kept, start = self._waiting, 0
        self._waiting = []
        for end in [match.end() for match in _BLANK_LINE.finditer(data)]:
            event = data[start:end]
            start = end
            if b'"usage"' in event and _USAGE.search(event):
                self._last = event
                if _NO_CHOICES.search(event):
                    found = _FINGERPRINT.search(event)
                    self.fingerprint = found[0] if found else b""
                    kept = [self._put_in(earlier) for earlier in kept]
                    continue
            kept.append(self._put_in(event) if self.fingerprint is not None else event)
        if start < len(data):  # one line end more than a blank line needs
            kept.append(data[start:])
        if self.fingerprint is None:
            waits_from = next((at for at, event in enumerate(kept) if _ENDS_CHOICE in event), len(kept))
            self._waiting = kept[waits_from:]
            del kept[waits_from:]
            if sum(map(len, self._waiting)) > EVENT_BYTES_MAX:  # not vLLM, or very many choices: no more waiting
                kept += self._waiting
                self._waiting, self.fingerprint = [], b""
        return b"".join(kept)

    def _put_in(self, event: bytes) -> bytes:
        """The fingerprint as the last member of an event that ends a choice."""
        if not self.fingerprint or _ENDS_CHOICE not in event or self.fingerprint in event:
            return event
        brace = event.rfind(b"}")
        return b"%b,%b%b" % (event[:brace], self.fingerprint, event[brace:])


def whole_answer(body: bytes) -> Usage:
    """The usage of an answer that came in one read."""
    usage = Usage()
    usage.read_last(body)
    return usage
