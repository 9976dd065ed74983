"""How does a call's answer come to say its joules? In its head, in a stream's usage, behind a stream's last chunk."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from proxy.arrival import BYTES_A_TOKEN
from proxy.energy.answer import answer_headers, usage_bytes

if TYPE_CHECKING:
    from proxy.call import Call
    from proxy.engines import Engine
    from proxy.usage import EventReader, PlainReader, Usage
    from scheduler.energy.bill_calls import Estimate
    from scheduler.energy.desk import EnergyDesk

HELD_BYTES = 65_536
"""Of an answer whose head waits for its end; a longer one goes out as it comes."""
TRAILER_LINE = b"trailer: x-energy-joules, x-energy-source, x-energy-interval\r\n"


class Joules:
    """What the scheduler thinks that calls have used, as answers say it. The bill follows when their windows close."""

    def __init__(self, desk: EnergyDesk) -> None:
        self._desk = desk

    def told(self, engine: Engine) -> bool:
        """Whether anything can be told of the joules of an engine's calls."""
        return engine.name in self._desk.engines

    def lines(self, call: Call, usage: Usage) -> bytes:
        """Header lines for the answer of a call that is complete."""
        return answer_headers(self._guess(call, usage))

    def members(self, call: Call, usage: Usage) -> bytes:
        """The same for a usage object, to stand behind its other members."""
        return usage_bytes(self._guess(call, usage))

    def last_chunk(self, call: Call, reader: EventReader | PlainReader | None) -> bytes:
        """The end of a body in chunks, with trailers."""
        return b"0\r\n%b\r\n" % (self.lines(call, reader.usage) if reader is not None else b"")

    def estimate(self, call: Call) -> Estimate | None:
        """Of a call that ends now, however it ends, for its span; None: it has no bill."""
        prompt, output = call.prompt_tokens, call.output_tokens
        if prompt is None:
            prompt = call.request_bytes // BYTES_A_TOKEN
        if output is None:
            output = call.response_chunks
        return self._desk.guess(call.id, prompt, call.cached_tokens, output, monotonic())

    def _guess(self, call: Call, usage: Usage) -> Estimate | None:
        return self._desk.guess(call.id, usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, monotonic())


class HeldAnswer:
    """An answer that is no stream, and did not come in one read: nobody can use its beginning alone, and its head can
    say what it used if it waits for the end."""

    __slots__ = ("_call", "_data", "_joules")

    def __init__(self, joules: Joules, call: Call) -> None:
        self._joules = joules
        self._call = call
        self._data = b""

    def feed(self, data: bytes, reader: EventReader | PlainReader | None, *, ended: bool) -> bytes:
        """What goes out now, all there is so far; b"" while it waits."""
        self._data += data
        if not ended and len(self._data) <= HELD_BYTES:
            return b""
        if not ended or reader is None:
            return self._data
        head, _, body = self._data.partition(b"\r\n\r\n")
        return b"%b\r\n%b\r\n%b" % (head, self._joules.lines(self._call, reader.usage), body)
