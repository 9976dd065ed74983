"""Are members taken out of and put into a JSON object, and every other byte left alone?"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.jsonedit import edit_members, member_span, set_nested

# Few names, so that they meet; some of them can only be written with an escape or are prefixes of others.
NAMES = st.sampled_from(
    ["workflow", "work", "workflows", "priority", "model", "", 'a"b', "a\\", "a/b", "é", "\n", "😀"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=8)
BOOLEANS = st.booleans()
SPACES = st.text(" \t\r\n", max_size=3)


def escaped(text: str) -> str:
    r"""A JSON string with every character as \uXXXX, the least readable form that is still allowed."""
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'


@st.composite
def spelled(
    draw: st.DrawFn, objects: st.SearchStrategy[dict[str, Any]] = OBJECTS
) -> tuple[list[tuple[str, bytes]], bytes]:
    """An object as a client may write it: its members in order (value as written), and the whole body."""
    members: list[tuple[str, Any]] = list(draw(objects).items())
    if draw(BOOLEANS) and members:  # duplicates are legal JSON
        members.append((members[0][0], draw(VALUES)))
    written: list[tuple[str, bytes]] = []
    parts: list[bytes] = []
    for name, value in members:
        style = draw(st.integers(0, 3))
        if style == 0:
            text = orjson.dumps(value)
        else:
            text = json.dumps(value, ensure_ascii=style == 1, indent=2 if style == 3 else None).encode()
        key = escaped(name) if draw(BOOLEANS) else json.dumps(name, ensure_ascii=draw(BOOLEANS))
        a, b, c, d = (draw(SPACES).encode() for _ in range(4))
        written.append((name, text))
        parts.append(a + key.encode() + b + b":" + c + text + d)
    inside = b",".join(parts) if parts else draw(SPACES).encode()
    return written, draw(SPACES).encode() + b"{" + inside + b"}" + draw(SPACES).encode()


@given(spelled(), st.sets(NAMES), st.dictionaries(NAMES, VALUES, max_size=3))
def test_editing_bytes_equals_editing_the_object(
    case: tuple[list[tuple[str, bytes]], bytes], remove: set[str], add: dict[str, Any]
) -> None:
    _, body = case
    expected = {name: value for name, value in orjson.loads(body).items() if name not in remove} | add
    edited = edit_members(body, remove, {name: orjson.dumps(value) for name, value in add.items()})
    assert orjson.loads(edited) == expected
    assert json.loads(edited) == expected


@given(spelled(), st.sets(NAMES))
def test_what_is_not_removed_keeps_its_bytes_and_its_order(
    case: tuple[list[tuple[str, bytes]], bytes], remove: set[str]
) -> None:
    written, body = case
    edited = edit_members(body, remove, {})
    rest = edited
    for name, text in written:
        if name not in remove:
            before, found, rest = rest.partition(text)
            assert found == text, (name, before)
    if not any(name in remove for name, _ in written):
        assert edited == body


@given(spelled(), st.sets(NAMES))
def test_removing_twice_is_removing_once(case: tuple[list[tuple[str, bytes]], bytes], remove: set[str]) -> None:
    once = edit_members(case[1], remove, {})
    assert edit_members(once, remove, {}) == once


@given(spelled(), NAMES, VALUES)
def test_adding_and_removing_again_gives_back_the_body(
    case: tuple[list[tuple[str, bytes]], bytes], name: str, value: Any
) -> None:
    written, body = case
    if not written or name in dict(written):
        return
    added = edit_members(body, (), {name: orjson.dumps(value)})
    assert orjson.loads(added) == orjson.loads(body) | {name: value}
    assert edit_members(added, (name,), {}) == body


@given(spelled(), NAMES)
def test_the_span_is_the_last_value_of_that_name(case: tuple[list[tuple[str, bytes]], bytes], name: str) -> None:
    written, body = case
    span = member_span(body, name)
    values = [text for found, text in written if found == name]
    assert (body[slice(*span)] if span else None) == (values[-1] if values else None)


@given(spelled(st.builds(lambda rest, options: rest | {"stream_options": options}, OBJECTS, OBJECTS)))
def test_a_nested_member_is_set_and_its_neighbours_stay(case: tuple[list[tuple[str, bytes]], bytes]) -> None:
    _, body = case
    before = orjson.loads(body)
    if not isinstance(before["stream_options"], dict):  # the duplicate won
        with pytest.raises(ValueError, match="stream_options is not a JSON object"):
            set_nested(body, "stream_options", "include_usage", b"true")
        return
    edited = set_nested(body, "stream_options", "include_usage", b"true")
    before["stream_options"]["include_usage"] = True
    assert orjson.loads(edited) == before
    assert set_nested(edited, "stream_options", "include_usage", b"true") == edited


@given(st.binary(max_size=60) | st.text('{}[]",:\\u0w ', max_size=60).map(str.encode), st.sets(NAMES, min_size=1))
@example(b'{"workflow":"}","a":1}', {"workflow"})
@example(rb'{"a":"\\","workflow":"\\\"},"}', {"workflow"})
@example(rb'{"a":"\"","b":"\\\"","c":"\\\\","d":"x\\\\\"","workflow":["\"]","\\"]}', {"workflow"})
def test_whatever_orjson_reads_as_an_object_can_be_edited(body: bytes, remove: set[str]) -> None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if isinstance(value, dict):
        assert orjson.loads(edit_members(body, remove, {"x": b"1"})) == {
            name: member for name, member in value.items() if name not in remove
        } | {"x": 1}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (rb'{"model":"m","workflow":{"id":"w"}}', rb'{"model":"m"}'),
        (rb'{"workflow":{"id":"w"},"model":"m"}', rb'{"model":"m"}'),
        (rb'{"a":1,"workflow":[{"b":[]}],"c":1.50e+0}', rb'{"a":1,"c":1.50e+0}'),
        (rb'{"\u0077orkflow":1,"workflow":2,"work\u0066low":3}', rb"{}"),
        (
            b' {\n  "a": "\xc3\xa9",\n  "workflow": {},\n  "b": [1, 2]\n}\n',
            b' {\n  "a": "\xc3\xa9",\n  "b": [1, 2]\n}\n',
        ),
        (rb'{"nested":{"workflow":1},"text":"\"workflow\":1"}', rb'{"nested":{"workflow":1},"text":"\"workflow\":1"}'),
        (rb'{"workflows":1,"Workflow":2}', rb'{"workflows":1,"Workflow":2}'),
        (b"{}", b"{}"),
        (b" { } ", b" { } "),
    ],
)
def test_our_member_is_taken_out(body: bytes, expected: bytes) -> None:
    assert edit_members(body, ("workflow",), {}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"priority":-3}'),
        (b"{ \n}", b'{ \n"priority":-3}'),
        (b'{"a":{}}', b'{"a":{},"priority":-3}'),
        (b'{"a":"{"}\n', b'{"a":"{","priority":-3}\n'),
        (b'{"a":1 }', b'{"a":1 ,"priority":-3}'),
    ],
)
def test_a_member_is_appended(body: bytes, expected: bytes) -> None:
    assert edit_members(body, (), {"priority": b"-3"}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{},"n":1}', b'{"stream_options":{"include_usage":true},"n":1}'),
        (
            b'{"stream_options": {"include_usage": false, "x": 1.0} }',
            b'{"stream_options": { "x": 1.0,"include_usage":true} }',
        ),
    ],
)
def test_usage_is_asked_for(body: bytes, expected: bytes) -> None:
    assert set_nested(body, "stream_options", "include_usage", b"true") == expected


def test_adding_reads_nothing_before_the_end() -> None:
    """The fast path is for calls without anything to remove: a body that would not survive the scanner shows it."""
    assert edit_members(b"{ not read }", (), {"a": b"1"}) == b'{ not read ,"a":1}'


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 500 + b"]" * 500,
        b"[" + b",".join([b"[[]]"] * 20_000) + b"]",
        b'"' + rb"\"\\\n" * 50_000 + b'"',
        b"[" + b",".join([rb'{"role":"user","content":"\"}\"]\u00e9"}'] * 5_000) + b"]",
    ],
    ids=["deep", "brackets", "escapes", "messages"],
)
def test_large_and_hostile_values_are_stepped_over(value: bytes) -> None:
    body = b'{"messages":%b,"workflow":%b,"n":1}' % (value, value)
    assert edit_members(body, ("workflow",), {}) == b'{"messages":%b,"n":1}' % value
