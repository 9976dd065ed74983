"""However an answer is cut into reads: does the client get the same bytes, and is the same usage found?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.usage import EventReader, PlainReader, Usage
from tests.fuzz.answers import (
    EVENT_STREAMS,
    PLACES,
    USAGES,
    EventStream,
    expected_usage,
    json_document,
)
from tests.fuzz.stage import cut

if TYPE_CHECKING:
    from collections.abc import Sequence

MANY = settings(max_examples=400)
Counts = tuple[int | None, int | None, int | None]


def counts(usage: Usage) -> Counts:
    """Prompt, cached and output tokens."""
    return usage.prompt_tokens, usage.cached_tokens, usage.output_tokens


def fed(reader: EventReader | PlainReader, data: bytes, at: Sequence[int] | None) -> bytes:
    """What a client gets of this answer."""
    return b"".join([reader.feed(piece) for piece in cut(data, at)]) + reader.end()


@MANY
@given(EVENT_STREAMS, PLACES, st.booleans())
def test_a_stream_without_its_usage_is_the_stream_less_one_event(
    stream: EventStream, at: list[int] | None, known: bool
) -> None:
    fingerprint = stream.fingerprint if known else None
    reader = EventReader(take_out=True, fingerprint=fingerprint)
    assert fed(reader, stream.data, at) == stream.without_usage(fingerprint)
    assert counts(reader.usage) == expected_usage(stream.usages)
    if stream.usage_event:
        assert reader.fingerprint == stream.fingerprint


@MANY
@given(EVENT_STREAMS, PLACES)
def test_a_stream_that_asked_is_passed_on_byte_by_byte(stream: EventStream, at: list[int] | None) -> None:
    reader = EventReader(take_out=False)
    assert fed(reader, stream.data, at) == stream.data
    assert counts(reader.usage) == expected_usage(stream.usages)


@MANY
@given(EVENT_STREAMS, PLACES, st.booleans())
def test_only_whole_events_go_out_before_the_end(stream: EventStream, at: list[int] | None, take_out: bool) -> None:
    """An error event may follow at any time."""
    reader = EventReader(take_out=take_out)
    out = b""
    for piece in cut(stream.data, at):
        out += reader.feed(piece)
        assert out == b"" or out.endswith((b"\n\n", b"\n\r\n"))


@MANY
@given(st.binary(max_size=30) | st.text('d:\n\r{}"', max_size=30).map(str.encode), PLACES)
def test_any_bytes_pass_a_reader_that_takes_nothing_out(data: bytes, at: list[int] | None) -> None:
    assert fed(EventReader(take_out=False), data, at) == data
    assert fed(EventReader(take_out=True), data, at) == data
    assert fed(PlainReader(), data, at) == data


@MANY
@given(json_document(), PLACES)
def test_the_usage_of_a_document_is_found_whatever_the_cuts(
    document: tuple[bytes, list[bytes]], at: list[int] | None
) -> None:
    data, usages = document
    reader = PlainReader()
    assert fed(reader, data, at) == data
    assert counts(reader.usage) == expected_usage(usages)
    at_once = Usage()
    at_once.read_last(data)
    assert counts(at_once) == expected_usage(usages)


NUMBERS = st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
STRANGE = st.fixed_dictionaries(
    {name: NUMBERS | st.text(max_size=3) | st.lists(NUMBERS, max_size=2) for name in ("output_tokens", "total_tokens")},
    optional={
        "prompt_tokens": NUMBERS | st.just("7"),
        "completion_tokens": NUMBERS | st.just({}),
        "input_tokens": st.just(3) | NUMBERS,
        "cache_read_input_tokens": st.just(2) | NUMBERS,
        "cache_creation_input_tokens": NUMBERS | st.just("x"),
        "prompt_tokens_details": st.just([1]) | st.dictionaries(st.just("cached_tokens"), NUMBERS),
    },
)


@MANY
@given(STRANGE)
def test_no_usage_object_stops_a_reader_and_only_numbers_are_taken(usage: dict[str, object]) -> None:
    read = Usage()
    read.read(b'{"usage":%b}' % orjson.dumps(usage))
    assert all(count is None or type(count) is int for count in counts(read))


@pytest.mark.parametrize("usage", USAGES)
def test_the_shapes_here_are_ones_that_are_read(usage: bytes) -> None:
    assert None not in (expected_usage([usage])[0], expected_usage([usage])[2])
