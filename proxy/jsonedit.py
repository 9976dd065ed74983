"""How is a member of a JSON object taken out, put in or replaced, with every other byte left as the client wrote it?

All functions take a body that `orjson.loads` has read as an object: they look for members and do not check JSON. They
are linear in the body, do not recurse, and never build the values they step over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_SPACE = rb"[ \t\n\r]*+"
# The first form knows only quotes escaped by a single backslash, and so looks for one character at a time, seven times
# as fast; where a quote follows several backslashes it gives up, and the second form counts them.
_STRING = rb"""(?:"[^"]*+(?:(?<=[^\\]\\)"[^"]*+)*+(?<!\\)"|"[^"\\]*+(?:\\.[^"\\]*+)*+")"""
_LEAF = rb"[\[{](?:[^][{}\"]++|" + _STRING + rb")*+[]}]"
# A name and, if it is no object or array, its value with the comma or bracket that follows.
_MEMBER = re.compile(
    _SPACE + rb"(" + _STRING + rb")" + _SPACE + rb":" + _SPACE
    + rb"(?:(" + _STRING + rb"|[^][{}\",\s]++)" + _SPACE + rb"(?=([,}])))?+",
    re.DOTALL,
)  # fmt: skip
# Strings, whole objects and arrays without others inside, and what lies between them are stepped over at once.
_BRACKET = re.compile(rb"(?:[^][{}\"]++|" + _STRING + rb"|" + _LEAF + rb")*+([][{}])", re.DOTALL)
_SEPARATOR = re.compile(_SPACE + rb"([,}])")
_OPENING = re.compile(_SPACE + rb"\{")
_EMPTY = re.compile(_SPACE + rb"\{" + _SPACE + rb"\}")
_ESCAPED_ASCII = re.compile(rb"\\u00")


def edit_members(body: bytes, remove: Collection[str], add: Mapping[str, bytes]) -> bytes:
    """Remove every top-level member named in `remove`, then append `add` (name → value as JSON bytes).

    A name in `add` that the object has already and that is not in `remove` would be there twice. Where nothing is to
    be removed, the body is copied and not read.
    """
    wanted = {name for name in remove if _may_have(body, name)}
    added = b",".join([b"%b:%b" % (orjson.dumps(name), value) for name, value in add.items()])
    if not wanted:
        if not added:
            return body
        end = body.rindex(b"}")
        comma = b"" if _EMPTY.match(body) else b","
        return b"%b%b%b%b" % (body[:end], comma, added, body[end:])
    kept = []
    opening = end = _after_opening(body)
    for name, start, _, _, end in _members(body):
        if name not in wanted:
            kept.append(body[start:end])
    if added:
        kept.append(added)
    return b"%b%b%b" % (body[:opening], b",".join(kept), body[end:])


def set_nested(body: bytes, outer: str, inner: str, value: bytes) -> bytes:
    """Set `inner` in the object that the member `outer` is, keeping its other members; `outer` is made if absent.

    Raises ValueError if `outer` is there and is no object.
    """
    span = member_span(body, outer)
    if span is None:
        return edit_members(body, (), {outer: b"{%b:%b}" % (orjson.dumps(inner), value)})
    start, end = span
    if body[start] != ord("{"):
        raise ValueError(f"{outer} is not a JSON object")
    return b"%b%b%b" % (body[:start], edit_members(body[start:end], (inner,), {inner: value}), body[end:])


def member_span(body: bytes, name: str) -> tuple[int, int] | None:
    """Start and end of the value of the top-level member `name`; of the last one, as parsers take it. None = absent."""
    if not _may_have(body, name):
        return None
    span = None
    for found, _, start, end, _ in _members(body):
        if found == name:
            span = start, end
    return span


def _may_have(body: bytes, name: str) -> bool:
    """False only if no member can have this name: neither as it is nor with characters written as escapes."""
    if b'"%b"' % name.encode() in body:
        return True
    if name.isascii() and name.replace("-", "_").isidentifier():  # letters can be escaped in one way alone
        return _ESCAPED_ASCII.search(body) is not None
    return b"\\" in body


def _after_opening(body: bytes) -> int:
    opening = _OPENING.match(body)
    assert opening is not None, "the body is not a JSON object"
    return opening.end()


def _members(body: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    """Each top-level member: its name, where it starts, where its value starts and ends, where it ends.

    A member reaches from the bracket or comma before it to the comma or bracket after it, white space included.
    """
    start = _after_opening(body)
    while (member := _MEMBER.match(body, start)) is not None:
        value_start, value_end = member.span(2)
        end = member.start(3)
        if end < 0:
            value_start = member.end()
            value_end = _nested_end(body, value_start)
            separator = _SEPARATOR.match(body, value_end)
            assert separator is not None, "a member is followed by a comma or the end of the object"
            end = separator.start(1)
        yield orjson.loads(member[1]), start, value_start, value_end, end
        if body[end] == ord("}"):
            return
        start = end + 1


def _nested_end(body: bytes, start: int) -> int:
    """Where the object or array that starts here ends."""
    depth = 1
    end = start + 1
    while depth:
        bracket = _BRACKET.match(body, end)
        assert bracket is not None, "brackets are balanced"
        depth += 1 if bracket[1] in b"[{" else -1
        end = bracket.end()
    return end
