"""What does an engine compute? Additive features of a call, a step or a window: the x of design.md's two equations."""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """Sums over engine steps, all ≥ 0 for work that was done; a correction may have negative members.

    The first six are the features of design.md's T and E, the context split as the twin splits it.
    """

    steps: float = 0.0
    """Engine steps. Of a call: its share of them, Σ over its steps of 1 / sequences in the step."""
    decode_tokens: float = 0.0
    """Tokens that were decoded; a call's first token is its prefill's and not among them."""
    context_tokens: float = 0.0
    """Distinct tokens of KV cache read, by decoding and by the first chunk of a prefill with a cached prefix."""
    repeated_tokens: float = 0.0
    """Tokens that further sequences with the same prefix read again: from the L2 cache, so at a lower price. 0 where
    nobody knows who shares what; then all of it stands in `context_tokens`."""
    prefill_tokens: float = 0.0
    """Prompt tokens computed anew."""
    attention_pairs: float = 0.0
    """Σ over prefills of new tokens × mean number of tokens before each."""
    prompts: float = 0.0
    """Prefills that ended. No price of its own but in time."""
    prompt_steps: float = 0.0
    """Steps that had prompt tokens in them, as far as is known (0: it is not), of a call its prompt's share. It and the
    next two have no price: they say how a power limit meets the prompts, see bursts.py."""
    crowded_tokens: float = 0.0
    """Σ over prompt tokens of the prompt tokens in their step."""
    late_tokens: float = 0.0
    """Σ over prompt tokens of what came before their step, from 0 to 1."""

    def __add__(self, other: Work) -> Work:  # type: ignore[override]  # sums of features, not of tuples
        return Work(
            self[0] + other[0],
            self[1] + other[1],
            self[2] + other[2],
            self[3] + other[3],
            self[4] + other[4],
            self[5] + other[5],
            self[6] + other[6],
            self[7] + other[7],
            self[8] + other[8],
            self[9] + other[9],
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            self[0] - other[0],
            self[1] - other[1],
            self[2] - other[2],
            self[3] - other[3],
            self[4] - other[4],
            self[5] - other[5],
            self[6] - other[6],
            self[7] - other[7],
            self[8] - other[8],
            self[9] - other[9],
        )

    def __mul__(self, factor: float) -> Work:  # type: ignore[override]
        return Work(*(value * factor for value in self))

    def __rmul__(self, factor: float) -> Work:  # type: ignore[override]
        return self * factor


NOTHING = Work()


def call_work(prompt_tokens: float, cached_tokens: float, output_tokens: float) -> Work:
    """All that a call asks of an engine but its steps, which depend on its company. 0 output tokens: not prefilled.

    Closed forms of sums over steps: decode step k = 1, 2 … of `output_tokens` − 1 reads prompt + k tokens; a prefill of
    p new tokens behind c cached ones has p·c + p²/2 pairs, however it is cut into chunks, and reads the c once
    (in fact once a chunk: prompts longer than vLLM's budget of a step read a little more).
    """
    if output_tokens <= 0:
        return NOTHING
    new = prompt_tokens - cached_tokens
    decoded = output_tokens - 1.0 if output_tokens > 1.0 else 0.0
    return Work(
        0.0,
        decoded,
        cached_tokens + decoded * (prompt_tokens + (decoded + 1.0) / 2),
        0.0,
        new,
        new * (cached_tokens + new / 2),
        1.0,
    )
