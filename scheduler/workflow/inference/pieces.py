"""Which parts of an output are quoted by themselves?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.workflow.inference.sampling import SHORTEST

if TYPE_CHECKING:
    from collections.abc import Iterator

FENCED_MAX = 4
_THOUGHT = b"</think>"
_FENCE = b"```"


def pieces(output: bytes) -> Iterator[bytes]:
    """The whole, without the white space around it; what follows the thinking; the blocks of code. None is empty."""
    whole = output.strip()
    if not whole:
        return
    yield whole
    if _THOUGHT in whole and (said := whole.rpartition(_THOUGHT)[2].strip()):
        yield said
    if _FENCE in whole:
        for block in whole.split(_FENCE, 2 * FENCED_MAX + 1)[1 : 2 * FENCED_MAX : 2]:
            code = block.partition(b"\n")[2].strip()  # behind the language's name
            if len(code) >= SHORTEST:
                yield code
