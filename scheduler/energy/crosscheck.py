"""Does the engine's own count agree with the gateway's? What a window's counters say, and whose work it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.window import Counters
    from scheduler.energy.work import Work

TOLERANCE = 0.03
"""Share of a window's tokens that may be the events on their way."""
TOKENS_PER_CALL = 4.0
TOKENS_LEAST = 16.0


class Moved(NamedTuple):
    """By how much counters moved in a window; None = not reported at one of its edges."""

    steps: float | None
    prompt_tokens: float | None
    cached_tokens: float | None
    generation_tokens: float | None
    reset: bool
    """One went back: the engine started anew, and the rest says nothing."""


def moved(before: Counters | None, after: Counters | None) -> Moved:
    """Between two probes."""
    if before is None or after is None:
        return Moved(None, None, None, None, reset=False)
    steps, prompt, cached, generation = (
        None if one is None or other is None else other - one
        for one, other in zip(before[1:5], after[1:5], strict=True)
    )
    if any(change is not None and change < 0 for change in (steps, prompt, cached, generation)):
        return Moved(None, None, None, None, reset=True)
    return Moved(steps, prompt, cached, generation, reset=False)


def as_counted(work: Work, cached_tokens: float, moves: Moved) -> Work | None:
    """A window's work with the prompt tokens that the engine counted. `cached_tokens`: of its prompts, as `work` has
    them. None: the engine does not count them.

    A model that learned from guesses would take all of a prompt's energy for less than it is: what is spread by chance
    says little of what it is held against (Carroll et al., Measurement Error in Nonlinear Models, 2006, ch. 3).
    """
    if moves.prompt_tokens is None or moves.cached_tokens is None:
        return None
    computed = max(moves.prompt_tokens - moves.cached_tokens, 0.0)
    told = work.prefill_tokens
    pairs = work.attention_pairs * computed / told if told > 0 else computed * computed / 2
    return work._replace(
        context_tokens=max(work.context_tokens + moves.cached_tokens - cached_tokens, 0.0),
        prefill_tokens=computed,
        attention_pairs=pairs,
        prompts=work.prompts if told > 0 or not computed else max(work.prompts, 1.0),
        crowded_tokens=work.crowded_tokens * computed / told if told > 0 else 0.0,
        late_tokens=work.late_tokens * computed / told if told > 0 else 0.0,
    )


class BypassWatch:
    """Work of the engine that nobody sent through here: more running than sent, or more tokens than calls made."""

    def __init__(self) -> None:
        self.excess = 0.0
        """Tokens that nobody asked for here, so far as they are not explained by then."""
        self.foreign = False
        """More calls at the engine than came through here, at a probe since the last edge."""

    def probe(self, counters: Counters, calls_at_most: int) -> None:
        """`calls_at_most`: in flight now, and those that ended since the last probe."""
        if counters.running is not None and counters.running + (counters.waiting or 0.0) > calls_at_most:
            self.foreign = True

    def close(self, generated: float | None, explained: float, unsettled: float, calls: int) -> bool:
        """A window ends: whether something bypassed the gateway in it, or in those before it.

        `explained`: tokens of calls, corrections included; `unsettled`: what calls under way which are no streams may
        have made at most; `calls`: of the window.
        """
        foreign, self.foreign = self.foreign, False
        if generated is None:
            return foreign
        allowed = TOKENS_LEAST + TOKENS_PER_CALL * calls + TOLERANCE * max(generated, explained) + unsettled
        excess = self.excess + generated - explained
        # Nothing fades while calls are under way: what was guessed wrong is put right when they end.
        self.excess = max(excess, -allowed) if calls else 0.0
        return foreign or excess > allowed
