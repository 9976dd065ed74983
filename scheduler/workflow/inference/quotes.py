"""Which known outputs stand word for word in a message?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from scheduler.workflow.inference.memory import Text
from scheduler.workflow.inference.sampling import DROPPED_BITS, SHORTEST, STEP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.workflow.inference.placement import Counters
    from scheduler.workflow.inference.sampling import Sieve

CANDIDATES_MAX = 8192
COMPARED_BYTES_MAX = 4 << 20
"""Places and bytes compared in full, per message: many more than any honest prompt has, and a few milliseconds."""
SCANNED_BYTES_MAX = 1 << 20
"""Of one message: what stands behind is not searched."""

_new = tuple.__new__
_ESCAPED = re.compile(rb"\\[nu\"']")
_UNICODE = re.compile(rb"(?:\\u[0-9a-fA-F]{4})+")


class Quote(NamedTuple):
    """An output's first place in a message, in bytes; in those of the message without its escapes if `escaped`."""

    start: int
    end: int
    text: Text
    escaped: bool = False


def find(data: bytes, windows: Mapping[int, Text | list[Text]], sieve: Sieve, counters: Counters) -> list[Quote]:
    """The outputs in a message, each once, in the order of their places; none that stands only within others.

    A message is read as it is, and if it has escapes as JSON or a printed list makes them, once more without these.
    An output that one reading shows to be a part of another one is a part of it, whatever the other reading shows.
    """
    if len(data) < SHORTEST or not windows:
        return []
    if len(data) > SCANNED_BYTES_MAX:
        data = data[:SCANNED_BYTES_MAX]
        counters.cut_short += 1
    every = _matches(data, windows, sieve, counters)
    if b"\\" not in data or _ESCAPED.search(data) is None:
        return list(_outermost(every).values()) if len(every) > 1 else every
    found = _outermost(every)
    inner = {quote.text for quote in every} - found.keys()
    every = _matches(unescaped(data), windows, sieve, counters)
    plain = _outermost(every)
    inner |= {quote.text for quote in every} - plain.keys()
    for text, quote in plain.items():
        found.setdefault(text, quote._replace(escaped=True))
    return [quote for text, quote in found.items() if text not in inner]


def unescaped(data: bytes) -> bytes:
    """Without one level of a JSON string's escapes, or of Python's."""
    data = data.replace(b"\\\\", b"\0").replace(b"\\n", b"\n").replace(b'\\"', b'"').replace(b"\\'", b"'")
    data = data.replace(b"\\t", b"\t").replace(b"\\r", b"\r")
    return _UNICODE.sub(_characters, data).replace(b"\0", b"\\")


def _characters(match: re.Match[bytes]) -> bytes:
    units = bytes.fromhex(match[0].replace(b"\\u", b"").decode("ascii"))
    return units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")


def _matches(data: bytes, windows: Mapping[int, Text | list[Text]], sieve: Sieve, counters: Counters) -> list[Quote]:
    found: list[Quote] = []
    counters.scanned_bytes += len(data)
    if len(data) < SHORTEST:
        return found
    get = windows.get
    places, compared = 0, 0
    samples, hash_of = sieve.survivors(data)
    for sample in samples:
        owners = get(hash_of(sample) >> DROPPED_BITS)
        if owners is None:
            continue
        for text in (owners,) if isinstance(owners, Text) else owners:
            tried, starts = text.occurrences(data, sample * STEP)
            places += tried
            compared += tried * text.length
            if starts:  # `_new` is what `Quote(…)` comes to, in half the time
                found += [_new(Quote, (start, start + text.length, text, False)) for start in starts]
        if places > CANDIDATES_MAX or compared > COMPARED_BYTES_MAX:
            counters.cut_short += 1
            break
    counters.candidates += places
    return found


def _outermost(every: list[Quote]) -> dict[Text, Quote]:
    """The first place of each text that has one outside of all others."""
    found: dict[Text, Quote] = {}
    reached = 0
    every.sort(key=lambda quote: (quote.start, -quote.end))
    for quote in every:
        if quote.end > reached:
            reached = quote.end
            found.setdefault(quote.text, quote)
    return found
