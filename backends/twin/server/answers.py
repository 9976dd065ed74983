"""What does the twin answer, and where does it end? Decided when a call is submitted, from its prompt alone."""

from __future__ import annotations

import hashlib
import random
from array import array
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from backends.twin.server.tokenizer import END
from backends.twin.server.words import COMMON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.tokenizer import Tokenizer

SENTENCE_WORDS = (5, 14)
NATURAL_TOKENS_MEDIAN = 160
NATURAL_TOKENS_SIGMA = 0.7
NATURAL_TOKENS = (8, 2048)
"""An answer that nobody cuts has a log-normal length within these."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What of a call's parameters shapes its answer."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    skip_special: bool = True
    seed: int | None = None
    temperature: float = 1.0
    text: str | None = None
    """The answer's text where it is not free: JSON of a schema, a tool call, one of several choices."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sequence's whole output. `text` is what the client sees of it, cut at a stop string."""

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None
    held_back: int
    """Characters kept back while streaming, because a stop string may begin in them."""
    ends: list[int]
    """Length of the text after each token, before any cut."""

    def shown(self, count: int) -> int:
        """How much of `text` a client has after so many tokens."""
        if count >= len(self.token_ids):
            return len(self.text)
        return max(0, min(len(self.text), self.ends[count - 1] - self.held_back)) if count else 0


def tokens_at_most(sampling: Sampling) -> int:
    """How long an answer may get."""
    if sampling.ignore_eos:
        return sampling.max_tokens
    return min(sampling.max_tokens, max(NATURAL_TOKENS[1], sampling.min_tokens) + 1)


def answer(tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: Sampling, index: int = 0) -> Answer:
    """The same for the same prompt, sampling and index (and, at temperature 0, whatever seed and index are)."""
    if sampling.text is not None:
        ids = [*tokenizer.encode(sampling.text), END][: sampling.max_tokens]
    else:
        ids = _free(tokenizer, prompt_ids, sampling, index)
    finish: Literal["stop", "length"] = "length"
    stop_reason: int | str | None = None
    if ids[-1] == END and not sampling.ignore_eos:
        finish = "stop"
    if sampling.stop_token_ids:
        for at in range(sampling.min_tokens, len(ids)):
            if ids[at] in sampling.stop_token_ids and ids[at] != END:
                del ids[at + 1 :]
                finish, stop_reason = "stop", ids[at]
                break
    # A token that ends the sequence is charged and not shown.
    shown = ids[:-1] if finish == "stop" and not (sampling.include_stop and stop_reason is not None) else ids
    pieces = list(tokenizer.pieces(shown))
    if not sampling.skip_special and shown is not ids:
        pieces.append(tokenizer.piece(ids[-1]))
    ends = list(accumulate(map(len, pieces)))
    text = "".join(pieces)
    if sampling.stop:
        cut = _first_stop(text, ends, sampling)
        if cut is not None:
            tokens, length, stop_reason = cut
            del ids[tokens:]
            text, finish = text[:length], "stop"
    ends.extend([len(text)] * (len(ids) - len(ends)))
    held = max(map(len, sampling.stop)) - 1 if sampling.stop and not sampling.include_stop else 0
    return Answer(ids, text, finish, stop_reason, held, ends)


def _first_stop(text: str, ends: list[int], sampling: Sampling) -> tuple[int, int, str] | None:
    """Tokens, shown length and stop string at the first token behind which vLLM finds one: it looks at the new
    characters after each token and takes the first of its list that is there."""
    before = 0
    for count, end in enumerate(ends, 1):
        if count > sampling.min_tokens and end > before:
            for stop in sampling.stop:
                at = text.find(stop, max(0, before - len(stop) + 1), end)
                if at >= 0:
                    return count, at + len(stop) if sampling.include_stop else at, stop
        before = end
    return None


def _free(tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: Sampling, index: int) -> list[int]:
    """Sentences of common words; a longer limit only adds to them."""
    known = _vocabulary(tokenizer)
    key = hashlib.blake2b(array("I", prompt_ids).tobytes(), digest_size=16)
    if sampling.temperature:
        key.update(f"{sampling.seed}/{index}".encode())
    seed = int.from_bytes(key.digest())
    length = _natural_length(seed)
    stops = sampling.stop_token_ids
    natural = max(length, sampling.min_tokens)
    count = sampling.max_tokens if sampling.ignore_eos else min(sampling.max_tokens, natural + 1)
    ids = random.Random(seed).choices(known.words, cum_weights=known.weights, k=count)
    marks = random.Random(seed + 1)
    at = 0
    if prompt_ids[-1] == known.newline:  # no space where the answer begins a line
        ids[0] = known.bare[ids[0]]
        at = marks.randint(*SENTENCE_WORDS) + 1
        if at <= count:
            ids[at - 1] = known.period
    while at < count:
        ids[at] = known.capital[ids[at]]
        words = marks.randint(*SENTENCE_WORDS)
        comma = at + marks.randint(2, words)
        if comma + 1 < min(count, at + words) and marks.random() < 0.5:
            ids[comma] = known.comma
        at += words + 1
        if at - 1 < count:
            ids[at - 1] = known.period
    if not sampling.ignore_eos and count == natural + 1:
        ids[-1] = END
    if stops:  # what would stop a sequence is not drawn before min_tokens
        allowed = [word for word in known.words if word not in stops]
        for at in range(min(sampling.min_tokens, count)) if allowed else ():
            if ids[at] in stops:
                ids[at] = allowed[at % len(allowed)]
    return ids


def _natural_length(seed: int) -> int:
    drawn = random.Random(seed + 2).lognormvariate(0, NATURAL_TOKENS_SIGMA) * NATURAL_TOKENS_MEDIAN
    low, high = NATURAL_TOKENS
    return max(low, min(high, round(drawn)))


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    words: list[int]
    weights: list[float]
    capital: dict[int, int]
    """The same word as a sentence begins with it."""
    bare: dict[int, int]
    """That without the space before it."""
    newline: int
    comma: int
    period: int


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    words = list(COMMON)
    ids = tokenizer.words(words)
    capitals = tokenizer.words([word.capitalize() for word in words])
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(ids))))
    signs = dict(zip(ids, capitals, strict=True))
    bare = {token_id: tokenizer.id_of(word.capitalize()) for token_id, word in zip(ids, words, strict=True)}
    newline, comma, period = map(tokenizer.id_of, "\n,.")
    return _Vocabulary(ids, weights, signs, bare, newline, comma, period)
