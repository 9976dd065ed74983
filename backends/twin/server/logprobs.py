"""What do logprobs look like? Numbers in vLLM's shapes, drawn from the token and its place: there is no model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from backends.twin.server.words import COMMON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.tokenizer import Tokenizer


def _ranked(tokenizer: Tokenizer, token_id: int, at: int, count: int) -> list[tuple[int, float]]:
    """The token itself, likeliest, and others behind it: at least one, at most `count`."""
    drawn = hashlib.blake2b(f"{token_id}/{at}".encode(), digest_size=2).digest()
    value = -(1 + drawn[0]) / 256
    ranked = [(token_id, value)]
    other = drawn[1]
    while len(ranked) < count:
        found = tokenizer.id_of(f" {COMMON[other % len(COMMON)]}")
        other += 7
        value -= 0.25
        if found != token_id:
            ranked.append((found, value))
    return ranked


def chat_logprobs(tokenizer: Tokenizer, ids: Sequence[int], start: int, top: int | None) -> dict[str, Any]:
    """Of a chat's output tokens from number `start` on."""
    content = []
    for at, token_id in enumerate(ids, start):
        ranked = _ranked(tokenizer, token_id, at, top or 0)
        content.append(
            {**_token(tokenizer, *ranked[0]), "top_logprobs": [_token(tokenizer, *each) for each in ranked[: top or 0]]}
        )
    return {"content": content}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": tokenizer.piece(token_id), "logprob": logprob, "bytes": list(tokenizer.piece_bytes(token_id))}


def completion_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], top: int, *, start: int = 0, offset: int = 0, first_unknown: bool = False
) -> dict[str, Any]:
    """Of a completion's tokens; `first_unknown`: a prompt's first token has none."""
    offsets, values, tokens, tops = [], [], [], []
    for at, token_id in enumerate(ids, start):
        piece = tokenizer.piece(token_id)
        ranked = _ranked(tokenizer, token_id, at, top)
        unknown = first_unknown and at == start
        offsets.append(offset)
        offset += len(piece)
        tokens.append(piece)
        values.append(None if unknown else ranked[0][1])
        tops.append(None if unknown else {tokenizer.piece(each): logprob for each, logprob in ranked})
    return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}


def prompt_logprobs(tokenizer: Tokenizer, ids: Sequence[int], top: int) -> list[dict[str, Any] | None]:
    """Of a prompt's tokens: by token id, the first without."""
    rows: list[dict[str, Any] | None] = [None]
    for at, token_id in enumerate(ids[1:], 1):
        ranked = _ranked(tokenizer, token_id, at, top)
        rows.append(
            {
                str(each): {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.piece(each)}
                for rank, (each, logprob) in enumerate(ranked, 1)
            }
        )
    return rows
