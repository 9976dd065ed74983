"""How is a known text found in a long one without looking at each byte?

An output is indexed by its windows at STEP offsets in a row; a prompt is looked at only at each STEP-th byte. So any
occurrence of an output is hit by exactly one sample of the prompt, wherever it stands. A window is three words of
eight bytes with gaps between them: contiguous text of that length is not rare, prose repeats it all the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

STEP: Final = 24
WINDOW: Final = 56
"""Bytes from a window's first to its last."""
SHORTEST: Final = WINDOW + STEP - 1
"""Bytes of the shortest text that can be found."""
KEY_BITS: Final = 60
"""Of a window's 64-bit hash these are kept: Python's integers of that size are the smallest that do."""

_WORD = np.dtype("<u8")
_SLOT, _TAG = np.dtype(np.int64), np.dtype(np.uint16)
_WORDS: Final = 3
_APART: Final = STEP
"""Bytes from one of a window's words to the next: samples have their words in common, and each is read once."""
_WEIGHT = np.array(0x9E3779B97F4A7C15, _WORD)
_WEIGHTS = np.full(_WORDS, _WEIGHT, _WORD)
DROPPED_BITS: Final = 64 - KEY_BITS
_DROPPED = np.array(DROPPED_BITS, _WORD)
_FEW: Final = 12
"""Samples that are looked up sooner than sieved."""
_ONE = np.array(1, np.uint32)


def window_hashes(data: bytes, base: int) -> NDArray[np.uint64]:
    """Of the windows at base … base + STEP − 1; data must reach SHORTEST bytes from there."""
    words: NDArray[np.uint64] = np.ndarray((STEP, _WORDS), _WORD, data, base, (1, _APART))
    return words @ _WEIGHTS


def keys_of(hashed: NDArray[np.uint64]) -> list[int]:
    """What tables know windows by."""
    keys: list[int] = (hashed >> _DROPPED).tolist()
    return keys


def sampled(data: bytes) -> NDArray[np.uint64]:
    """Hashes of the windows at each STEP-th byte; data has WINDOW bytes at least."""
    words: NDArray[np.uint64] = np.frombuffer(data, _WORD, len(data) >> 3)[:: STEP >> 3]
    sums = words[:-2] + words[1:-1]
    sums += words[2:]
    sums *= _WEIGHT
    return sums


class Sieve:
    """Which samples may be known? For all keys together: it only says where to look.

    A slot lacks the bits that the tags of its windows have between them. So a sample whose tag has another is unknown,
    and nearly all are seen to be, though the table is so small that it fits into a cache and many slots are in use.
    """

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two."""
        self._counts = np.zeros(slots, np.uint32)
        self._lacks = np.full(slots, 0xFFFF, np.uint16)
        self.bytes = self._counts.nbytes + self._lacks.nbytes
        self._shift = np.array(64 - (slots.bit_length() - 1), _WORD)

    @property
    def in_use(self) -> bool:
        """Is there any window in it?"""
        return bool(self._counts.any() or (self._lacks != 0xFFFF).any())

    def add(self, hashed: NDArray[np.uint64]) -> None:
        """Count these windows in."""
        slots, tags = self._where(hashed)
        np.bitwise_and.at(self._lacks, slots, ~tags)
        np.add.at(self._counts, slots, _ONE)

    def remove(self, keys: Sequence[int]) -> None:
        """Count them out. A slot's bits go with its last window."""
        slots, _ = self._where(np.array(keys, _WORD) << _DROPPED)
        np.subtract.at(self._counts, slots, _ONE)
        self._lacks[slots[self._counts[slots] == 0]] = 0xFFFF

    def survivors(self, data: bytes) -> tuple[Sequence[int], Callable[[int], int]]:
        """The samples of `data` (at least SHORTEST bytes) that may be known: their numbers; and their hashes by number,
        whose upper KEY_BITS are what tables know windows by."""
        samples = sampled(data)
        if len(samples) <= _FEW:
            return range(len(samples)), samples.item
        # As `_where` has it. All slots are within: to wrap them is the quickest check.
        lacks = self._lacks.take((samples >> self._shift).view(_SLOT), None, None, "wrap")
        lacks &= samples.view(_TAG)[1::4]
        return np.logical_not(lacks).nonzero()[0].tolist(), samples.item

    def _where(self, hashed: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Slots and tags: a hash's highest bits, and its bits 16 to 31."""
        return (hashed >> self._shift).view(_SLOT), hashed.view(_TAG)[1::4]
