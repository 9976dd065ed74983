"""Text to token ids and back: the twin's own vocabulary, of the served model's size.

A text is cut into words with the space before them, numbers of up to three digits, single signs and runs of white
space; each is one token if the vocabulary has it, else the longest pieces from the left, else its UTF-8 bytes. So
text made of whole words cuts into the same words again, which is what keeps the twin's token counts exact.
"""

from __future__ import annotations

import codecs
import re
import string
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from backends.twin.server.words import CODAS, COMMON, ENDINGS, ONSETS, VOWELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

END_OF_TEXT, START, END = 0, 1, 2
"""END closes a message: it is what an answer ends with."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CUT = re.compile(
    r"<\|(?:endoftext|im_start|im_end)\|>| ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]| ?_|\s+(?!\S)|\s+|.", re.DOTALL | re.ASCII
)


SIZE_MIN = 4096
"""Single signs, numbers of two digits and the commonest words."""


class Tokenizer:
    """Immutable. `size` token ids: 0 … size − 1."""

    def __init__(self, size: int) -> None:
        size = max(size, SIZE_MIN)
        pieces = _pieces()
        self._bytes: list[bytes] = [piece.encode() for piece in SPECIAL] + [bytes([value]) for value in range(256)]
        self._ids: dict[str, int] = {piece: at for at, piece in enumerate(SPECIAL)}
        self._ids.update((chr(value), len(SPECIAL) + value) for value in range(128))
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = len(self._bytes)
                self._bytes.append(piece.encode())
                if len(self._bytes) == size:
                    break
        self.size = len(self._bytes)
        self._longest = max(map(len, self._ids))

    def id_of(self, piece: str) -> int:
        """The id of a piece that is one token. KeyError otherwise."""
        return self._ids[piece]

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids; with a limit, only about so many: never fewer than it if the text has more.

        ValueError for text that is not Unicode (a lone surrogate)."""
        ids: list[int] = []
        known = self._ids
        for match in _CUT.finditer(text):
            piece = match[0]
            found = known.get(piece)
            if found is not None:
                ids.append(found)
            else:
                self._split(piece, ids, limit)
            if limit is not None and len(ids) >= limit:
                break
        return ids

    def _split(self, piece: str, ids: list[int], limit: int | None) -> None:
        at, known = 0, self._ids
        while at < len(piece) and (limit is None or len(ids) < limit):
            for length in range(min(self._longest, len(piece) - at), 0, -1):
                found = known.get(piece[at : at + length])
                if found is not None:
                    ids.append(found)
                    at += length
                    break
            else:
                ids.extend(len(SPECIAL) + byte for byte in piece[at].encode())
                at += 1

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text; ids outside the vocabulary are left out, and special ones unless asked for."""
        data, first, size = self._bytes, 0 if special else len(SPECIAL), self.size
        return b"".join(data[each] for each in ids if first <= each < size).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """What each token adds to the text: bytes of a character that is not complete yet add nothing."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for each in ids:
            yield "" if each < len(SPECIAL) else decoder.decode(self._bytes[each])

    def piece(self, token_id: int) -> str:
        """One token on its own, special ones by their names."""
        return self._bytes[token_id].decode(errors="replace")

    def piece_bytes(self, token_id: int) -> bytes:
        """One token's bytes."""
        return self._bytes[token_id]

    def words(self, words: Sequence[str]) -> list[int]:
        """The ids of these words with a space before each, every one a single token."""
        return [self._ids[f" {word}"] for word in words]


def _pieces() -> Iterator[str]:
    yield from ("\n\n", "\n\n\n", "  ", "   ", "    ", " " * 8, " " * 16, "\n    ", "\r\n")
    for word in COMMON:
        yield f" {word}"
        yield word
        yield f" {word.capitalize()}"
        yield word.capitalize()
    yield from ENDINGS
    yield from (f" {sign}" for sign in string.punctuation)
    yield from map(str, range(10, 1000))
    yield from (f" {number}" for number in range(1000))
    yield from (f" {letter}" for letter in string.ascii_letters)
    syllables = ["".join(parts) for parts in product(ONSETS, VOWELS, CODAS)]
    yield from syllables
    yield from map("".join, product(VOWELS, CODAS))
    yield from (f" {syllable}" for syllable in syllables)
    # What is left of the vocabulary: words that nobody uses, as in every large vocabulary.
    short = ["".join(parts) for parts in product(ONSETS, VOWELS[:5])]
    for parts in product(short, short, short):
        yield f" {''.join(parts)}"


@lru_cache(maxsize=4)
def tokenizer(size: int) -> Tokenizer:
    """The tokenizer of a vocabulary of this size (at least what text needs)."""
    return Tokenizer(size)
