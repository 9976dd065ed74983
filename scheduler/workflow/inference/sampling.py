"""How is a known text found in a long one without looking at each byte?

An output is indexed by its windows at STEP offsets in a row; a prompt is looked at only at each STEP-th byte. So any
occurrence of an output is hit by exactly one sample of the prompt, wherever it stands. A window is three words of
eight bytes with gaps between them: contiguous text of that length is not rare, prose repeats it all the time.
"""

from __future__ import annotations

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
_STRIDE: Final = STEP // 8
_SECOND, _THIRD = 3, 6
"""Where a window's words stand, counted in words."""
_A, _B, _C = (np.array(one, _WORD) for one in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
_DROPPED = np.array(64 - KEY_BITS, _WORD)


def window_keys(data: bytes, base: int) -> list[int]:
    """Keys of the windows at base … base + STEP − 1; data must reach SHORTEST bytes from there."""
    shape, each_byte = (STEP,), (1,)
    hashes = np.ndarray(shape, _WORD, data, base, each_byte) * _A
    hashes += np.ndarray(shape, _WORD, data, base + 8 * _SECOND, each_byte) * _B
    hashes += np.ndarray(shape, _WORD, data, base + 8 * _THIRD, each_byte) * _C
    hashes >>= _DROPPED
    keys: list[int] = hashes.tolist()
    return keys


def sampled(data: bytes) -> NDArray[np.uint64]:
    """Hashes of the windows at each STEP-th byte."""
    words = np.frombuffer(data, _WORD, len(data) // 8)
    end = len(words) - _THIRD
    hashes: NDArray[np.uint64] = words[0:end:_STRIDE] * _A
    hashes += words[_SECOND : end + _SECOND : _STRIDE] * _B
    hashes += words[_THIRD::_STRIDE] * _C
    return hashes


class Sieve:
    """Which samples may be known? A counter per slot, for all keys together: it only says where to look."""

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two; as many bytes."""
        bits = slots.bit_length() - 1
        self._counts = bytearray(slots)
        self._view = np.frombuffer(self._counts, np.uint8)
        self._shift = np.array(64 - bits, _WORD)
        self._key_shift = KEY_BITS - bits

    def add(self, keys: Sequence[int]) -> None:
        """Count these windows in."""
        counts, shift = self._counts, self._key_shift
        for key in keys:
            if (count := counts[key >> shift]) != 255:
                counts[key >> shift] = count + 1

    def remove(self, keys: Sequence[int]) -> None:
        """Count them out; a slot that was full once stays so."""
        counts, shift = self._counts, self._key_shift
        for key in keys:
            if (count := counts[key >> shift]) != 255:
                counts[key >> shift] = count - 1

    def survivors(self, data: bytes) -> list[tuple[int, int]]:
        """Positions in `data` (at least SHORTEST bytes) whose samples may be known, each with its key."""
        hashes = sampled(data)
        hits = self._view.take((hashes >> self._shift).view(np.int64)).nonzero()[0]
        if not len(hits):
            return []
        return list(zip((hits * STEP).tolist(), (hashes.take(hits) >> _DROPPED).tolist(), strict=True))
