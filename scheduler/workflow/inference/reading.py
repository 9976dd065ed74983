"""What is a prompt, for comparing? Its messages' bytes and digests, and the hashes of its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.inference.hashing import digest as digest_of
from scheduler.workflow.inference.hashing import number, running
from scheduler.workflow.inference.placement import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.workflow.inference.placement import Segment

INSTRUCTIONS = ("system", "developer")
INSTRUCTIONS_BYTES = 256
"""So much of a system message tells one template from another; what comes later may be the date."""
OPENING_BYTES = 96
"""So much of the first line does where there is no system message: what comes behind is the matter itself."""
_PREFIX_BITS = 60
_LEAD_BYTES = PREFIX_BYTES[-1]


class Prompt:
    """A prompt, read once."""

    __slots__ = ("chains", "data", "digests", "instructions", "roles")

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.roles = [role for role, _ in segments]
        self.data = [text.encode("utf-8", "surrogatepass").strip() for _, text in segments]
        """Without the white space around each: clients strip what they send back."""
        digests: list[bytes] = []
        chains: list[bytes] = []
        chain = running()
        for role, data in zip(self.roles, self.data, strict=True):
            digest = digest_of(data)
            chain.update(b"%b\0%b" % (role.encode("utf-8", "surrogatepass"), digest))
            digests.append(digest)
            chains.append(chain.digest())
        self.digests = digests
        """Of each message's text."""
        self.chains = chains
        """Of the list up to and with each message, roles included."""
        said = [number for number, role in enumerate(self.roles) if role not in INSTRUCTIONS]
        self.instructions = said[0] if said else len(self.roles)
        """So many messages at the beginning are instructions: a list of these alone says nothing of a workflow."""

    @property
    def bare(self) -> bool:
        """One text without roles, as completions have it."""
        return self.roles == [""]

    @property
    def plain(self) -> bool:
        """Texts without roles: no list of messages."""
        return "" in self.roles

    def lead(self) -> bytes:
        """Its beginning with the roles, as long as the longest prefix that is hashed."""
        parts: list[bytes] = []
        room = _LEAD_BYTES
        for role, data in zip(self.roles, self.data, strict=True):
            parts += (role.encode("utf-8", "surrogatepass"), b"\0", data, b"\0")
            room -= len(role) + len(data) + 2
            if room <= 0:
                break
        return b"".join(parts)

    def lead_end(self, number: int, end: int) -> int:
        """Where in `lead` the byte at `end` of this message stands."""
        before = sum(len(role.encode("utf-8", "surrogatepass")) + 2 for role in self.roles[: number + 1]) - 1
        return before + sum(map(len, self.data[:number])) + end

    def fingerprint(self, model: str | None) -> str:
        """See Placement."""
        opening = b""
        for role, data in zip(self.roles, self.data, strict=True):
            if role in INSTRUCTIONS:
                opening = b"\1" + data[:INSTRUCTIONS_BYTES]
                break
        else:
            if self.data:
                opening = self.data[0][:OPENING_BYTES].partition(b"\n")[0]
        return f"{number(opening, seed_of(model)):016x}"


def prefixes(lead: bytes, model: str | None) -> tuple[int, ...]:
    """See Placement.prefix."""
    view, seed = memoryview(lead), seed_of(model)
    dropped = 64 - _PREFIX_BITS
    return tuple([number(view[:end], seed) >> dropped for end in PREFIX_BYTES if end <= len(lead)])


def seed_of(model: str | None) -> int:
    """Tells models apart."""
    return number((model or "").encode("utf-8", "surrogatepass"))
