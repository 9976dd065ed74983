"""What is a prompt, for comparing? Its messages' bytes and digests, and the hashes of its beginning."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
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

    __slots__ = ("_seed", "bare", "chains", "data", "digests", "ends", "instructions", "plain", "prefix", "roles")

    def __init__(self, segments: Sequence[Segment], model: str | None) -> None:
        self.roles: list[str] = []
        self.data: list[bytes] = []
        """Without the white space around each: clients strip what they send back."""
        self.digests: list[bytes] = []
        self.chains: list[int] = []
        """Of the list up to and with each message, roles included."""
        self.ends: list[int] = []
        """Where each message ends in the text that prefixes are taken of."""
        roles, chain, end = self.roles, 0, 0
        for role, text in segments:  # one loop: most prompts have few messages, and each list made apart has its price
            try:
                data = text.encode().strip()
            except UnicodeEncodeError:  # half of a pair of surrogates
                data = text.encode("utf-8", "surrogatepass").strip()
            digest = digest_of(data)
            chain = number(digest, chain ^ (_MARKS.get(role) or _mark(role)))
            end += len(data)
            roles.append(role)
            self.data.append(data)
            self.digests.append(digest)
            self.chains.append(chain)
            self.ends.append(end)
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
        self.prefix = self._prefixes()
        """See Placement."""

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
        ends, found = self.ends, []
        message, cut, hashed = -1, 0, 0
        for length in PREFIX_BYTES:
            if not ends or length > ends[-1]:
                break
            if message < 0 or length > ends[message]:
                message, cut = bisect_left(ends, length), 0
                before, chain = (ends[message - 1], self.chains[message - 1]) if message else (0, 0)
                role = self.roles[message]
                mark = _MARKS.get(role) or _mark(role)
                data, hashed = self.data[message], chain ^ mark ^ self._seed
            hashed = number(data[cut : (cut := length - before)], hashed)
            found.append(hashed >> _DROPPED_BITS)
        return tuple(found)
