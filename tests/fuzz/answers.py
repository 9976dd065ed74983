"""Answers as engines give them, and as none should, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
from hypothesis import strategies as st

from tests.fuzz.stage import cut

Counts = tuple[int | None, int | None, int | None]

PLACES = st.lists(st.integers(0, 1 << 12), max_size=8) | st.none()
"""Where an answer is cut; None: behind each byte."""
USAGES = [
    b'{"prompt_tokens":7,"total_tokens":10,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}',
    b'{"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12, "prompt_tokens_details": null}',
    b'{"prompt_tokens":9,"total_tokens":9}',
]
TEXTS = [
    "Gr\u00fc\u00dfe",
    "",
    'say "usage":{"prompt_tokens":99}',
    '"finish_reason":"stop"',
    "}\n\n{",
    "[DONE]",
    "\\",
    '"choices":[]',
]
_KNOWN: dict[bytes, Counts] = dict(zip(USAGES, [(7, 5, 3), (8, None, 4), (9, None, 0)], strict=True))


def expected_usage(usages: list[bytes]) -> Counts:
    """What is counted of an answer with these usage objects: each figure as it was said last."""
    read = [None, None, None]
    for usage in usages[:1] + usages[-1:]:
        read = [new if new is not None else old for new, old in zip(_KNOWN[usage], read, strict=True)]
    return tuple(read)


@dataclass(frozen=True)
class EventStream:
    """A stream of chat events. `ends`: which of the events end a choice; `usage_event`: which one has no choices."""

    events: list[bytes]
    ends: frozenset[int]
    usage_event: int | None
    fingerprint: bytes
    usages: list[bytes]

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(self.events)

    def without_usage(self, known: bytes | None) -> bytes:
        """What a client gets that did not ask for usage; `known`: the fingerprint, if it was seen before."""
        if self.usage_event is not None and known is None:
            known = self.fingerprint
        out = []
        for number, event in enumerate(self.events):
            if number == self.usage_event:
                continue
            if number in self.ends and known:
                at = event.rindex(b"}")
                event = event[:at] + b"," + known + event[at:]
            out.append(event)
        return b"".join(out)


def _event(value: dict[str, object], spaced: bool, line_end: bytes) -> bytes:
    data = orjson.dumps(value)
    if spaced:  # where JSON allows it and vLLM does not do it
        data = data.replace(b'{"id":', b'{ "id" :', 1)
    return b"data: " + data + line_end * 2


@st.composite
def event_streams(draw: st.DrawFn) -> EventStream:
    """A stream as vLLM would send it: tokens, the ends of the choices, perhaps the usage, perhaps [DONE]."""
    line_end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    spaced = draw(st.booleans())
    choices = draw(st.integers(1, 3))
    texts = draw(st.lists(st.sampled_from(TEXTS), max_size=5))
    events = [
        _event(
            {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}, spaced, line_end
        )
        for text in texts
    ]
    ends = frozenset(range(len(events), len(events) + choices))
    events += [
        _event({"id": "c", "choices": [{"index": at, "delta": {}, "finish_reason": "stop"}]}, spaced, line_end)
        for at in range(choices)
    ]
    if draw(st.integers(0, 4)) == 0:
        events.insert(draw(st.integers(0, len(texts))), b": ping" + line_end * 2)
        ends = frozenset(at + 1 for at in ends)
    usage_event, fingerprint, usages = None, b"", []
    if draw(st.booleans()):
        usage_event = len(events)
        usages = [draw(st.sampled_from(USAGES))]
        fingerprint = draw(st.sampled_from([b"", b'"system_fingerprint":"vllm-1"']))
        tail = b"," + fingerprint if fingerprint else b""
        events.append(b'data: {"id":"c","choices":[],"usage":%b%b}' % (usages[0], tail) + line_end * 2)
    if draw(st.booleans()):
        events.append(b"data: [DONE]" + line_end * draw(st.sampled_from([2, 2, 3])))
    return EventStream(events, ends, usage_event, fingerprint, usages)


EVENT_STREAMS = event_streams()


@st.composite
def json_document(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """An answer that is one document, and its usage."""
    members = [b'"id":"c"', b'"choices":%b' % orjson.dumps(draw(st.lists(st.sampled_from(TEXTS), max_size=3)))]
    usages = [draw(st.sampled_from(USAGES))] if draw(st.booleans()) else []
    members += [b'"usage":' + usage for usage in usages]
    behind = draw(st.sampled_from(["", "x" * 5000, "usage", 'a "usage":']))
    members += [b'"kv_transfer_params":null', b'"prompt_logprobs":%b' % orjson.dumps([{"decoded_token": behind}])]
    return b"{" + b",".join(members) + b"}", usages


# --- on the wire ---

STATUS_LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 404 Not Found",
    b"HTTP/1.1 500 Oh",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 799 Odd",
]
BAD_STATUS_LINES = [
    b"HTTP/2 200",
    b"HTTP/1.1 20",
    b"HTTP/1.1 000 X",
    b"HTTP/1.1 101 Switching",
    b"ICY 200",
    b"",
    b"HTTP/1.1 099 X",
    b"HTTP/1.1 2000 OK",
    b"{}",
    b"HTTP/1.1  200 OK",
]
INTERIM = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
    b"HTTP/1.1 102 P\r\nx: y\r\n\r\n",
]
LINES = [
    b"x: y",
    b"set-cookie: a\r\nset-cookie: b",
    b"connection: keep-alive",
    b"connection: close",
    b"x-request-id: theirs",
    b"keep-alive: timeout=5",
    b"connection: x-a\r\nx-a: 1",
    b"content-encoding: gzip",
    b"server: u",
    b"date: now",
    b"trailer: x-t",
    b"x-workflow-id: theirs",
    b"connection: content-length",
    b"upgrade: h2c",
]
BAD_LINES = [
    b"x: y\r\n z",
    b"x : y",
    b"x: a\x00b",
    b": v",
    b"word",
    b"x: a\nb",
    b"content-length: 1",
    b"x: a\rb",
    b"transfer-encoding: gzip",
    b"connection: upgrade\r\nupgrade: a",
]
BAD_CHUNKS = [
    (b"\r\n0\r\n", b"X\r\n0\r\n"),
    (b"\r\n0\r\n", b"\r\n-1\r\n"),
    (b"\r\n", b"\n"),
    (b"0\r\n\r\n", b"fffffffffffffffff\r\n"),
]
BEHIND = [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"x", b"\r\n", b"\n", b"0\r\n\r\n", b"data: more\n\n"]
EVENTS = b"content-type: text/event-stream; charset=utf-8"
DOCUMENT = b"content-type: application/json"
STRANGE_USAGE = (
    b'{"usage":{"input_tokens":1,"cache_read_input_tokens":2,"cache_creation_input_tokens":"x","output_tokens":[]}}'
)


@dataclass(frozen=True)
class Script:
    """What an engine does with a request: it writes `data`, cut at some places, and then stays, closes or resets."""

    data: bytes
    at: list[int] | None
    end: str
    stream: EventStream | None = field(repr=False)
    """What the body says, if it is a stream and was not meddled with."""


def chunks(body: bytes, at: list[int] | None) -> bytes:
    """The body in chunks, cut at these places, and the end."""
    return b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, at) if piece]) + b"0\r\n\r\n"


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """An answer, whole or cut off, good or mangled."""
    stream = draw(st.none() | EVENT_STREAMS)
    body = stream.data if stream else draw(json_document())[0] if draw(st.booleans()) else draw(BODIES)
    bad = draw(st.sampled_from(["", "", "", "line", "status", "length", "both", "twice", "chunk", "behind", "edit"]))
    status = draw(st.sampled_from(BAD_STATUS_LINES if bad == "status" else STATUS_LINES[:1] * 8 + STATUS_LINES))
    lines = [EVENTS if stream else DOCUMENT, *draw(st.lists(st.sampled_from(LINES), max_size=2))]
    if bad == "line":
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(BAD_LINES)))
    right = b"content-length: %d" % len(body)
    framing = draw(st.sampled_from(["chunked", "chunked", "length", "eof"]))
    if bad in ("both", "twice"):
        lines += [right, b"content-length: 3" if bad == "twice" else b"transfer-encoding: chunked"]
    elif bad == "length":
        lines.append(
            b"content-length: " + draw(st.sampled_from([b"+3", b"", b"3, 3", b"9" * 30, b"0x3", b"-1", b"99"]))
        )
    elif framing == "chunked":
        lines.append(b"transfer-encoding: chunked")
        body = chunks(body, draw(PLACES))
        if bad == "chunk":
            body = body.replace(*draw(st.sampled_from(BAD_CHUNKS)))
    elif framing == "length":
        lines.append(right)
    data = draw(st.sampled_from([b""] * 8 + INTERIM)) + b"\r\n".join([status, *lines]) + b"\r\n\r\n" + body
    if bad == "behind":
        data += draw(st.sampled_from(BEHIND))
    if bad == "edit":
        stream, place = None, draw(st.integers(0, len(data) - 1))
        data = data[:place] + draw(st.sampled_from([b"", b"\r\n", b"\n", b"\x00", b"x", b"}"])) + data[place + 1 :]
    if draw(st.integers(0, 3)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return Script(data, draw(PLACES), draw(st.sampled_from(["stay", "stay", "close", "reset"])), stream)


BODIES = st.sampled_from([b"", b"{}", b'{"error":"no"}', STRANGE_USAGE, b"\xff" * 300])
