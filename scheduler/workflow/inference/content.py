"""From a call's prompt to its place, and from an answer to what can be quoted: the memory of contents as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.inference.memory import OWNERS_MAX, TABLED_BYTES, TEXTS_MAX, Memory
from scheduler.workflow.inference.pieces import pieces
from scheduler.workflow.inference.place import place
from scheduler.workflow.inference.placement import Counters, Placement
from scheduler.workflow.inference.reading import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.workflow.inference.memory import Call
    from scheduler.workflow.inference.placement import Segment

BYTES_MAX = 64 * 1024 * 1024
BYTES_MIN = 1024 * 1024
KEEP_SECONDS = 86_400.0
"""A batch's window: who has not gone on by then will not."""
_new = tuple.__new__
_EXPIRED_AT_ONCE = 4
"""Calls forgotten for their age when one arrives: more than one, so that none is left, and never many."""


class ContentInference:
    """One gateway's memory of what was asked and answered. Pure: `now` is given, in seconds, and never goes back."""

    def __init__(self, max_bytes: int = BYTES_MAX, keep_seconds: float = KEEP_SECONDS) -> None:
        """`max_bytes`: all that it keeps, counted. ValueError for less than BYTES_MIN."""
        if max_bytes < BYTES_MIN:
            raise ValueError(f"the memory of contents needs {BYTES_MIN} bytes at least, not {max_bytes}")
        self.counters = Counters()
        self.keep_seconds = keep_seconds
        self._memory = Memory(max_bytes)
        self._oldest = 0.0
        """No call that is kept arrived before."""

    @property
    def bytes_used(self) -> int:
        """What is kept, its tables included, counted from above."""
        return self._memory.bytes

    @property
    def bytes_max(self) -> int:
        """The bound; may be changed at any time and holds from the next call on."""
        return self._memory.max_bytes

    @bytes_max.setter
    def bytes_max(self, value: int) -> None:
        self._memory.max_bytes = max(value, BYTES_MIN)

    def arrived(self, call_id: str, key: str, model: str | None, segments: Sequence[Segment], now: float) -> Placement:
        """A call's prompt; remembered under its key. ValueError for an id that is known already."""
        memory, counters = self._memory, self.counters
        if call_id in memory.calls:
            raise ValueError(f"call {call_id!r} arrived twice")
        if self._oldest < now - self.keep_seconds:
            self._expire(now)
        counters.calls += 1
        prompt = Prompt(segments, model)
        call = memory.open(call_id, key, now)
        turn, confidence, data_from, new = place(call, prompt, memory.sieve, counters)
        self._remember(
            call, prompt, new - 1 if new else 0
        )  # the first new one may follow an answer: that is new as well
        if memory.bytes > memory.max_bytes:
            counters.evicted += memory.shrink()
        # What `Placement(…)` comes to, by way of a function in Python that takes twice as long.
        return _new(Placement, (turn, confidence, data_from, prompt.fingerprint(), prompt.prefix))

    def answered(self, call_id: str, texts: str | Sequence[str], now: float) -> None:
        """What it was answered, each choice a text; () if that is not known. Of no matter for a call that is forgotten.

        To be told of each call that got an answer, since only from these others go on."""
        call = self._memory.calls.get(call_id)
        if call is None:
            return
        call.answered = self._memory.count()
        for text in (texts,) if isinstance(texts, str) else texts:
            for piece in pieces(text.encode("utf-8", "surrogatepass")):
                if len(call.texts) < TEXTS_MAX:
                    self._memory.say(call, piece)
                    self.counters.outputs += 1
        if self._memory.bytes > self._memory.max_bytes:
            self.counters.evicted += self._memory.shrink()

    def forget(self, call_id: str) -> None:
        """A call that got no answer: nothing will go on from it."""
        if (call := self._memory.calls.get(call_id)) is not None:
            self._memory.forget(call)

    def _expire(self, now: float) -> None:
        calls, before = self._memory.calls, now - self.keep_seconds
        for _ in range(_EXPIRED_AT_ONCE):
            oldest = next(iter(calls.values()), None)
            self._oldest = now if oldest is None else oldest.arrived_at
            if oldest is None or oldest.arrived_at >= before:
                return
            self._memory.forget(oldest)
            self.counters.expired += 1

    def _remember(self, call: Call, prompt: Prompt, start: int) -> None:
        """`start`: the messages before are those of an earlier list."""
        key = call.key
        messages, prefixes = key.messages, key.prefixes
        for digest in prompt.digests[start:] if start else prompt.digests:
            if digest not in messages:
                messages[digest] = call
                call.messages.append(digest)
        for one in prompt.prefix:
            if one not in prefixes:
                prefixes[one] = call
                call.prefixes.append(one)
        tabled = len(call.messages) + len(call.prefixes)
        if prompt.bare:
            call.prompt = len(prompt.data[0]), prompt.digests[0]
        elif prompt.instructions < len(prompt.roles) and not prompt.plain:
            call.chain = prompt.chains[-1]
            same = key.lists.setdefault(call.chain, [])
            same.append(call)
            if len(same) > OWNERS_MAX:
                del same[0]
            tabled += 2
        call.bytes += tabled * TABLED_BYTES
        self._memory.charge(key, call.bytes)
