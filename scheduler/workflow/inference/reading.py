"""What is a prompt, for comparing? Its messages' bytes and digests, and the hashes of its beginning."""

from __future__ import annotations

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
_DROPPED_BITS = 4
"""Of a prefix's hash: Python's integers of 60 bits are smaller than those of 64."""
_MARKS = {role: b"%b\0" % role.encode() for role in ("", "system", "developer", "user", "assistant", "tool")}


class Prompt:
    """A prompt, read once."""

    __slots__ = ("_seed", "chains", "data", "digests", "instructions", "marks", "plain", "prefix", "roles")

    def __init__(self, segments: Sequence[Segment], model: str | None) -> None:
        self.roles: list[str] = []
        self.marks: list[bytes] = []
        self.data: list[bytes] = []
        """Without the white space around each: clients strip what they send back."""
        self.digests: list[bytes] = []
        self.chains: list[bytes] = []
        """Of the list up to and with each message, roles included."""
        chain = b""
        for role, text in segments:
            mark = _MARKS.get(role) or b"%b\0" % role.encode("utf-8", "surrogatepass")
            data = text.encode("utf-8", "surrogatepass").strip()
            digest = digest_of(data)
            chain = digest_of(chain + mark + digest)
            self.roles.append(role)
            self.marks.append(mark)
            self.data.append(data)
            self.digests.append(digest)
            self.chains.append(chain)
        roles = self.roles
        self.plain = "" in roles
        """Texts without roles: no list of messages."""
        instructions = 0
        while instructions < len(roles) and roles[instructions] in INSTRUCTIONS:
            instructions += 1
        self.instructions = instructions
        """So many messages at the beginning are instructions: a list of these alone says nothing of a workflow."""
        self._seed = number((model or "").encode("utf-8", "surrogatepass"))
        self.prefix = self._prefixes()
        """See Placement."""

    @property
    def bare(self) -> bool:
        """One text without roles, as completions have it."""
        return self.plain and len(self.roles) == 1

    def lead_end(self, number: int, end: int) -> int:
        """Where in the text that prefixes are taken of the byte at `end` of this message stands."""
        return sum(map(len, self.marks[: number + 1])) + sum(map(len, self.data[:number])) + number + end

    def fingerprint(self) -> str:
        """See Placement."""
        opening = b""
        for role, data in zip(self.roles, self.data, strict=True):
            if role in INSTRUCTIONS:
                opening = b"\1" + data[:INSTRUCTIONS_BYTES]
                break
        else:
            if self.data:
                opening = self.data[0][:OPENING_BYTES].partition(b"\n")[0]
        return f"{number(opening, self._seed):016x}"

    def _prefixes(self) -> tuple[int, ...]:
        """Each of the messages before, by their digests, and of the beginning of the one that it ends in."""
        found: list[int] = []
        before, start, wanted = b"", 0, 0
        for mark, data, chain in zip(self.marks, self.data, self.chains, strict=True):
            start += len(mark)
            reached = start + len(data)
            if reached >= PREFIX_BYTES[wanted]:
                view, seed = memoryview(data), number(before + mark, self._seed)
                while reached >= (end := PREFIX_BYTES[wanted]):
                    found.append(number(view[: max(0, end - start)], seed) >> _DROPPED_BITS)
                    wanted += 1
                    if wanted == len(PREFIX_BYTES):
                        return tuple(found)
            before, start = chain, reached + 1
        return tuple(found)
