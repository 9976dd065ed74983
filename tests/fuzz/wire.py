"""What do these bytes say, read as strictly as RFC 9112 allows? A second reader of HTTP/1.1, beside the gateway's.

It shares no code with what it judges. Where it reads fewer requests out of a stream than the gateway passes on,
somebody smuggles; where it reads other answers than the gateway meant, a client is led astray.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

Headers = list[tuple[bytes, bytes]]

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) +([!-~]+) +HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")  # a reason is nobody's
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)(?:;[\t -~\x80-\xff]*)?")
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"expect", b"authorization", b"content-type")
_NUMBER_MAX = 2**64


class Bad(Exception):
    """This is not HTTP, or not HTTP that may be passed on."""


class Short(Exception):
    """There must be more. `completion`: bytes that lead towards the end; `body`: what there is of the body."""

    def __init__(self, completion: bytes, body: bytes = b"") -> None:
        super().__init__(completion)
        self.completion = completion
        self.body = body


class Message(NamedTuple):
    """One request or answer. Header names are in lower case; `end` is where the bytes behind it begin."""

    start: tuple[bytes, ...]
    headers: Headers
    body: bytes
    end: int

    def values(self, name: bytes) -> list[bytes]:
        """Each value of this header."""
        return [value for lower, value in self.headers if lower == name]

    def tokens(self, name: bytes) -> set[bytes]:
        """The elements of this header's list, in lower case."""
        return {part.strip(b" \t").lower() for value in self.values(name) for part in value.split(b",")} - {b""}

    @property
    def method(self) -> bytes:
        """A request's method."""
        return self.start[0]

    @property
    def target(self) -> bytes:
        """A request's target, as an engine should see it: `http://host` and `/w/{id}` taken off."""
        target = self.start[1]
        if (origin := _ABSOLUTE.match(target)) is not None:
            path, mark, query = target[origin.end() :].partition(b"#")[0].partition(b"?")
            target = (path or b"/") + (mark + query if query else b"")
        workflow = re.match(rb"/w/[^/]+(?=/)", target)
        return target[workflow.end() :] if workflow else target

    @property
    def status(self) -> int:
        """An answer's status."""
        return int(self.start[1])

    @property
    def last(self) -> bool:
        """Nothing follows this request on its connection."""
        return self.start[2] == b"0" or b"close" in self.tokens(b"connection")


@dataclass
class Reading:
    """The requests in a stream, and why there are no more: `clean`, `last`, `short` or `bad`."""

    requests: list[Message] = field(default_factory=list)
    end: str = "clean"
    completion: bytes = b""


def read_requests(data: bytes, body_max: int) -> Reading:
    """Every request in the stream, up to the first fault."""
    reading = Reading()
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # empty lines before a request are passed over
            at += 1
        if at == len(data):
            return reading
        try:
            request = _request(data, at, body_max)
        except Bad:
            reading.end = "bad"
            return reading
        except Short as short:
            reading.end, reading.completion = "short", short.completion
            return reading
        reading.requests.append(request)
        if request.last:
            reading.end = "last"
            return reading
        at = request.end


def _request(data: bytes, at: int, body_max: int) -> Message:
    line, at = _line(data, at)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None or match[1] in (b"CONNECT", b"PRI"):
        raise Bad("request line")
    headers, at = _headers(data, at)
    head = Message(match.groups(), headers, b"", at)
    target = match[2]
    if target[:1] != b"/" and not _ABSOLUTE.match(target) and (match[1], target) != (b"OPTIONS", b"*"):
        raise Bad("target")
    if any(len(head.values(name)) > 1 for name in _ONCE):
        raise Bad("a header that may stand once stands twice")
    http_1_0 = match[3] == b"0"
    if not http_1_0 and not head.values(b"host"):
        raise Bad("no host")
    if any(value.lower() != b"100-continue" for value in head.values(b"expect")):
        raise Bad("expectation")
    framing = _framing(head)
    if framing == "chunked":
        if http_1_0:
            raise Bad("chunks in HTTP/1.0")
        body, at = _chunks(data, at, body_max)
    else:
        body, at = _counted(data, at, framing or 0, body_max)
    return Message(match.groups(), headers, body, at)


def read_answer(data: bytes, at: int, *, head_only: bool, closed: bool = False) -> Message:
    """One answer, an interim one too. `closed`: the stream ends behind `data`, which may be what ends a body."""
    line, at = _line(data, at)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Bad(f"status line {line[:80]!r}")
    headers, at = _headers(data, at)
    head = Message(match.groups(), headers, b"", at)
    if head.status == 101:
        raise Bad("nobody asked for another protocol")
    framing = _framing(head)
    if head_only or head.status < 200 or head.status in (204, 304):
        return head
    if framing == "chunked":
        body, at = _chunks(data, at, len(data))
    elif framing is not None:
        body, at = _counted(data, at, framing, _NUMBER_MAX)
    elif closed:
        body, at = data[at:], len(data)
    else:
        raise Short(b"", data[at:])
    return Message(match.groups(), headers, body, at)


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        # As it stands it may be a fault already; whoever goes on with these bytes will see.
        raise Short(b"\r\n\r\n")
    line = data[at:end]
    if b"\r" in line or b"\n" in line:
        raise Bad("a bare CR or LF")
    return line, end + 2


def _headers(data: bytes, at: int) -> tuple[Headers, int]:
    headers: Headers = []
    while True:
        line, at = _line(data, at)
        if not line:
            return headers, at
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Bad("header line")
        headers.append((match[1].lower(), match[2].rstrip(b" \t")))


def _framing(head: Message) -> int | str | None:
    """`chunked`, a number of bytes, or None where the head says neither."""
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Bad("two ways to tell the body's end")
    if codings:
        if codings[0].lower() != b"chunked":
            raise Bad("transfer coding")
        return "chunked"
    if not lengths:
        return None
    if not lengths[0].isdigit() or int(lengths[0]) >= _NUMBER_MAX:
        raise Bad("content-length")
    return int(lengths[0])


def _counted(data: bytes, at: int, length: int, body_max: int) -> tuple[bytes, int]:
    if length > body_max:
        raise Bad("too large")
    body = data[at : at + length]
    if len(body) < length:
        raise Short(b"x" * min(length - len(body), body_max), body)
    return body, at + length


def _chunks(data: bytes, at: int, body_max: int) -> tuple[bytes, int]:
    body = b""
    while True:
        try:
            line, at = _line(data, at)
        except Short:
            raise Short(b"\r\n" if data[at:] else b"0\r\n\r\n", body) from None
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None or (size := int(match[1], 16)) >= _NUMBER_MAX:
            raise Bad("chunk size")
        if size == 0:
            break
        body += data[at : at + size]
        if len(body) > body_max:
            raise Bad("too large")
        ending = data[at + size : at + size + 2]
        if not b"\r\n".startswith(ending):
            raise Bad("a chunk without its end")
        if len(ending) < 2:
            missing = max(0, at + size - len(data))
            raise Short(b"x" * min(missing, body_max + 1) + b"\r\n"[len(ending) :], body)
        at += size + 2
    try:
        _, at = _headers(data, at)  # trailers
    except Short:
        raise Short(b"\r\n", body) from None
    return body, at
