"""How is a known text found in a long one without looking at each byte?

An output is indexed by its windows at STEP offsets in a row; a prompt is looked at only at each STEP-th byte. So any
occurrence of an output is hit by exactly one sample of the prompt, wherever it stands. A window is three words of
eight bytes with gaps between them: contiguous text of that length is not rare, prose repeats it all the time.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STEP: Final = 24
WINDOW: Final = 56
"""Bytes from a window's first to its last."""
SHORTEST: Final = WINDOW + STEP - 1
"""Bytes of the shortest text that can be found."""
KEY_BITS: Final = 60
"""Of a window's 64-bit hash these are kept: Python's integers of that size are the smallest that do."""

_WORD = np.dtype("<u8")
_WORDS: Final = 3
_APART: Final = 24
"""Bytes from one of a window's words to the next."""
_WEIGHTS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], _WORD)
_DROPPED = np.array(64 - KEY_BITS, _WORD)
_TAG_SHIFT: Final = KEY_BITS - 48
"""A tag is a hash's bits 16 to 31."""
SLOT_BYTES: Final = 3


def hashes(data: bytes, base: int, step: int, count: int) -> NDArray[np.uint64]:
    """Of so many windows, one each `step` bytes from `base` on; all must lie within data."""
    words: NDArray[np.uint64] = np.ndarray((count, _WORDS), _WORD, data, base, (step, _APART))
    return words @ _WEIGHTS


def window_keys(data: bytes, base: int) -> list[int]:
    """Keys of the windows at base … base + STEP − 1; data must reach SHORTEST bytes from there."""
    keys: list[int] = (hashes(data, base, 1, STEP) >> _DROPPED).tolist()
    return keys


def sampled(data: bytes) -> NDArray[np.uint64]:
    """Hashes of the windows at each STEP-th byte; data has WINDOW bytes at least."""
    return hashes(data, 0, STEP, (len(data) - WINDOW) // STEP + 1)


class Sieve:
    """Which samples may be known? For all keys together: it only says where to look.

    A slot has the bits that the tags of its windows have between them. So whoever's tag has others is not known; that
    is nearly all, though a table that fits the caches has a window in every tenth slot.
    """

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two; SLOT_BYTES each."""
        bits = slots.bit_length() - 1
        self._counts = bytearray(slots)
        self._tags = array("H", bytes(2 * slots))
        self._view = np.frombuffer(self._tags, np.uint16)
        self._shift = np.array(64 - bits, _WORD)
        self._key_shift = KEY_BITS - bits

    def add(self, keys: Sequence[int]) -> None:
        """Count these windows in."""
        counts, tags, shift = self._counts, self._tags, self._key_shift
        for key in keys:
            slot = key >> shift
            tags[slot] |= key >> _TAG_SHIFT & 0xFFFF
            if (count := counts[slot]) != 255:
                counts[slot] = count + 1

    def remove(self, keys: Sequence[int]) -> None:
        """Count them out; a slot that was full once stays so."""
        counts, shift = self._counts, self._key_shift
        for key in keys:
            slot = key >> shift
            if (count := counts[slot]) != 255:
                counts[slot] = count - 1
                if count == 1:
                    self._tags[slot] = 0

    def survivors(self, data: bytes) -> tuple[list[int], list[int]]:
        """The samples of `data` (at least SHORTEST bytes) that may be known: their numbers, and their keys."""
        samples = sampled(data)
        slots = (samples >> self._shift).view(np.int64)
        tags = samples.view(np.uint16)[1::4]
        bits = self._view.take(slots, mode="wrap")  # all are within: this is the quickest check
        bits &= tags
        hits = (bits == tags).nonzero()[0]
        return hits.tolist(), (samples.take(hits) >> _DROPPED).tolist()
