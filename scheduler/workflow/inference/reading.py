"""What is a prompt, for comparing? Its messages' bytes and digests, and the hashes of its beginning."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from scheduler.workflow.inference.hashing import digest_of, number
from scheduler.workflow.inference.placement import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.workflow.inference.placement import Segment

INSTRUCTIONS = ("system", "developer")
INSTRUCTIONS_BYTES = 256
"""So much of a system message tells one template from another; what comes later may be the date."""
OPENING_BYTES = 96
"""So much of the first line does where there is no system message: what comes behind is the matter itself."""
_SHORT = 128
"""Characters of a name whose mark is remembered."""
_DROPPED_BITS = 4
"""Of a prefix's hash: Python's integers of 60 bits are smaller than those of 64."""


def _mark(name: str) -> int:
    """Of a role or a model."""
    return _mark_of_short(name) if len(name) <= _SHORT else number(name.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=256)
def _mark_of_short(name: str) -> int:
    return number(name.encode("utf-8", "surrogatepass"))


_NO_MODEL = _mark("")
_MARKS = {role: _mark(role) for role in ("", "system", "developer", "user", "assistant", "tool")}


class Prompt:
    """A prompt, read once."""

    __slots__ = ("_ends", "_seed", "bare", "chains", "data", "digests", "instructions", "plain", "prefix", "roles")

    def __init__(self, segments: Sequence[Segment], model: str | None) -> None:
        self.roles = roles = [role for role, _ in segments]
        self.data = [text.encode("utf-8", "surrogatepass").strip() for _, text in segments]
        """Without the white space around each: clients strip what they send back."""
        self.digests = list(map(digest_of, self.data))
        self.chains: list[int] = []
        """Of the list up to and with each message, roles included."""
        chain = 0
        for role, digest in zip(roles, self.digests, strict=True):
            chain = number(digest, chain ^ (_MARKS.get(role) or _mark(role)))
            self.chains.append(chain)
        self.plain = "" in roles
        """Texts without roles: no list of messages."""
        self.bare = self.plain and len(roles) == 1
        """One text without roles, as completions have it."""
        instructions = 0
        while instructions < len(roles) and roles[instructions] in INSTRUCTIONS:
            instructions += 1
        self.instructions = instructions
        """So many messages at the beginning are instructions: a list of these alone says nothing of a workflow."""
        self._seed = _mark(model) if model else _NO_MODEL
        self._ends = list(accumulate(map(len, self.data)))
        self.prefix = self._prefixes()
        """See Placement."""

    def lead_end(self, number: int, end: int) -> int:
        """Where in the text that prefixes are taken of the byte at `end` of this message stands."""
        return (self._ends[number - 1] if number else 0) + end

    def fingerprint(self) -> str:
        """See Placement."""
        for at, role in enumerate(self.roles):
            if role in INSTRUCTIONS:
                return f"{number(self.data[at][:INSTRUCTIONS_BYTES], ~self._seed):016x}"
        opening = self.data[0][:OPENING_BYTES].partition(b"\n")[0] if self.data else b""
        return f"{number(opening, self._seed):016x}"

    def _prefixes(self) -> tuple[int, ...]:
        """Each of the messages before, by their digests, and of the beginning of the one that it ends in.

        Within a message each goes on from the one before, so that no byte is hashed twice."""
        ends, found = self._ends, []
        message, cut, hashed = -1, 0, 0
        for length in PREFIX_BYTES:
            if not ends or length > ends[-1]:
                break
            if message < 0 or length > ends[message]:
                message, cut = bisect_left(ends, length), 0
                before, chain = (ends[message - 1], self.chains[message - 1]) if message else (0, 0)
                data, hashed = self.data[message], chain ^ _mark(self.roles[message]) ^ self._seed
            hashed = number(data[cut : (cut := length - before)], hashed)
            found.append(hashed >> _DROPPED_BITS)
        return tuple(found)
