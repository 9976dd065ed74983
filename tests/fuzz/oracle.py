"""What a gateway may make of a stream of requests: what is held against its answers and against what engines got."""

from __future__ import annotations

from tests.fuzz.wire import Message, Reading, Short, read_answer

STATUSES = frozenset((200, 400, 401, 405, 413, 414, 415, 417, 429, 431, 501, 505))
"""The engine is well and says 200; all else is the gateway's own and the client's fault."""
REFUSED_EARLY = frozenset((400, 414, 431))
"""Said before the gateway looks whether the method is HEAD: these may have a body at all times."""
_OURS = frozenset((b"host", b"content-length", b"x-request-id"))
DROPPED = frozenset(
    b"""x-workflow-id x-workflow-node x-workflow-after x-workflow-deadline-ms x-workflow-class x-workflow-final
    connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade
    http2-settings expect""".split()
)
"""Headers that end here: the next hop's, and those that are for the gateway."""


def check_answers(data: bytes, reading: Reading, *, cut_off: bool) -> list[int]:
    """All that a client was sent is HTTP, one answer a request at most; returns their statuses.

    `cut_off`: the connection was reset, which may lose the end of what was sent.
    """
    statuses: list[int] = []
    at = 0
    closing = False
    while at < len(data):
        number = len(statuses)
        asked = reading.requests[number] if number < len(reading.requests) else None
        assert asked is not None or (number == len(reading.requests) and reading.end in ("bad", "short")), (
            "more answers than requests"
        )
        head_only = asked is not None and asked.method == b"HEAD"
        try:
            answer = read_answer(data, at, head_only=head_only, closed=not cut_off)
        except Short:
            # Of a HEAD that was refused half-way, the reader here does not know that it was one.
            assert cut_off or (asked is None and data.endswith(b"\r\n\r\n")), data[at:]
            return statuses
        at = answer.end
        if answer.status == 100:
            assert asked is None or asked.values(b"expect"), "a 100 that nobody asked for"
            continue
        assert answer.status in STATUSES, answer
        statuses.append(answer.status)
        if closing := b"close" in answer.tokens(b"connection"):
            if head_only and answer.status in REFUSED_EARLY and at < len(data):
                at += int(answer.values(b"content-length")[0])
            assert at == len(data), "bytes behind the last answer"
    if not cut_off:  # each has its answer, up to one that closes
        whole = len(reading.requests) + (reading.end == "bad")
        assert len(statuses) == whole or closing, "a request without an answer"
    return statuses


def check_engine(got: list[Message], reading: Reading, *, bodies: bool = True) -> None:
    """Each request that an engine got is one that the client sent, in the same order, none of them twice.

    `bodies`: they must be the same; else a JSON object may have been edited.
    """
    sent = iter(reading.requests)
    for message in got:
        assert message.start[2] == b"1"
        assert len(message.values(b"host")) == 1
        assert not message.values(b"transfer-encoding")
        unlike: list[str] = []  # those before it may have been refused here, so an unlike one is no fault yet
        for one in sent:
            if (why := _unlike(message, one, bodies)) is None:
                break
            unlike.append(why)
        else:
            raise AssertionError(f"nobody sent {message}: {unlike}")


def _unlike(got: Message, sent: Message, bodies: bool) -> str | None:
    """Why this is not that request: method, target, body, or a header that is neither the client's nor ours."""
    if (got.method, got.start[1]) != (sent.method, sent.target):
        return "another method or target"
    kept_here = sent.method == b"OPTIONS" and not got.body  # a preflight's body is nobody's
    if got.body != sent.body and not kept_here and (bodies or not (got.body[-1:] == b"}" or sent.body.count(b"}"))):
        return "another body"
    dropped = DROPPED | sent.tokens(b"connection")
    for name, value in got.headers:
        if name not in _OURS:
            if name in dropped:
                return f"{name!r} was for us alone"
            if (name, value) not in sent.headers:
                return f"{name!r}: {value!r} is not the client's"
    return None
