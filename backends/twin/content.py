"""What a sequence of tokens is to the prefix cache: runs of whole blocks that are equal exactly if their tokens are."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence


class Run(NamedTuple):
    """`blocks` blocks that follow each other. Under the same prefix, runs of equal `name` and `offset` hold the same
    tokens as far as both reach; `offset` counts the blocks of that name before this run."""

    name: Hashable
    offset: int
    blocks: int


class Piece(NamedTuple):
    """A stretch of tokens known by a name instead of by its text: equal names mean equal tokens."""

    name: Hashable
    tokens: int


def runs_of_tokens(token_ids: Sequence[int], block_tokens: int) -> list[Run]:
    """One run a block, named by its token ids. What is behind the last whole block is left out."""
    data = array("I", token_ids).tobytes()
    width = block_tokens * array("I").itemsize
    return [Run(data[at : at + width], 0, 1) for at in range(0, len(data) - width + 1, width)]


def runs_of_pieces(pieces: Iterable[Piece], block_tokens: int) -> list[Run]:
    """A run for the blocks inside each piece and one for each block that straddles pieces: O(pieces), not O(tokens).

    A prompt of a system text and a question is two pieces; with its answer behind it, three.
    """
    runs: list[Run] = []
    straddling: list[tuple[Hashable, int, int]] = []
    filled = 0
    for name, tokens in pieces:
        used = 0
        if filled:
            used = min(tokens, block_tokens - filled)
            straddling.append((name, 0, used))
            filled += used
            if filled < block_tokens:
                continue
            runs.append(Run(tuple(straddling), 0, 1))
            straddling, filled = [], 0
        blocks = (tokens - used) // block_tokens
        if blocks:
            runs.append(Run((name, used), 0, blocks))
            used += blocks * block_tokens
        if used < tokens:
            straddling.append((name, used, tokens - used))
            filled = tokens - used
    return runs
