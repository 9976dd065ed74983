"""How far is a call, and what of its work falls into a window? Known, estimated, and corrected when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.window import CallShare
from scheduler.energy.work import NOTHING, Work

if TYPE_CHECKING:
    from scheduler.energy.batch import BatchClock, Group, Marks, Prefixes


class LiveCall:
    """A call at the engine, or one that ended since the last edge.

    Tokens are output tokens. Of a streamed call the events seen count them; another is a black box until its end: from
    when it is thought to be prefilled it advances by a token a step.
    """

    __slots__ = (
        "cached",
        "cached_forecast",
        "cached_known",
        "closed_at",
        "closed_tokens",
        "company",
        "counted",
        "ended",
        "groups",
        "id",
        "in_window",
        "joined",
        "left_marks",
        "marks",
        "outcome_tokens",
        "output_limit",
        "prefill_share",
        "prefilled",
        "prefixes",
        "prompt",
        "prompt_estimate",
        "read_again",
        "sent_at",
        "streamed",
        "tokens",
        "tokens_at",
        "told",
        "until",
    )

    def __init__(
        self,
        call_id: str,
        prompt: float,
        prompt_estimate: float,
        cached: float | None,
        output_limit: float,
        prefixes: Prefixes,
        now: float,
        *,
        streamed: bool,
    ) -> None:
        self.id = call_id
        self.prompt = prompt
        self.prompt_estimate = prompt_estimate
        """As the gateway guessed it; `prompt` is that corrected by what earlier guesses turned out to be."""
        self.cached = cached or 0.0
        self.cached_known = cached is not None
        self.cached_forecast = 0.0
        self.company: list[LiveCall] | None = None
        """Those whose prompts were prefilled between the same two probes: what was cached of all is shared out."""
        self.counted = False
        """Known to be prefilled, by its own tokens or by the engine's counters."""
        self.output_limit = output_limit
        self.prefixes = prefixes
        self.streamed = streamed
        self.sent_at = now
        self.closed_at = now
        """The last edge, or when it was sent if that was later."""
        self.tokens = 0.0
        self.tokens_at = now
        self.outcome_tokens: float | None = None
        """Output tokens as the engine counted them, at the end."""
        self.joined = False
        self.prefilled = False
        """Its prefill is in a window that has closed."""
        self.prefill_share = 0.0
        self.closed_tokens = 0.0
        """As it was told to the last window."""
        self.told = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Sum of what windows that have closed were told: decode, context, prefill, pairs, prompts."""
        self.in_window = self.read_again = 0.0
        self.groups: list[Group] | None = None
        self.marks: Marks | None = None
        self.left_marks: Marks | None = None
        self.ended = False
        self.until = now

    def join(self, clock: BatchClock) -> None:
        """Its first token is there, or thought to be: it decodes from now on."""
        self.joined = True
        # The step of its prefill was shared with all that decoded already.
        self.prefill_share = 1.0 / (clock.members + 1)
        self.groups = clock.join(self.prefixes)
        self.marks = clock.marks(self.groups)

    def leave(self, clock: BatchClock) -> None:
        """It is over; what it has of the clock's integrals is kept until the window closes."""
        self.ended = True
        self.until = clock.now
        if self.joined:
            self.left_marks = clock.marks(self.groups)
            clock.leave(self.groups)
            self.groups = None

    def part(self, clock: BatchClock, steps_per_second: float) -> float:
        """Its part of the steps since the last edge, as far as the gateway's own clock tells: Σ of all is not yet what
        the engine counted."""
        marks = self.left_marks if self.left_marks is not None else clock.marks(self.groups) if self.joined else None
        then = self.marks
        steps = 0.0 if self.prefilled else self.prefill_share
        if marks is None or then is None:
            self.in_window = self.read_again = 0.0
            return steps
        if not self.ended and (self.streamed or self.counted):
            self.marks = marks
        self.in_window = steps_per_second * (marks[1] - then[1])
        self.read_again = steps_per_second * (marks[2] - then[2])
        return steps + steps_per_second * (marks[0] - then[0])

    def close(self, steps: float, steps_per_second: float, now: float) -> CallShare:
        """The window ends, and so many steps of it were this call's.

        Corrections: where the call has ended, all that it did before this window is computed anew from what the engine
        counted, and the difference to what was told is the correction. Of a call that is no stream, the tokens of
        this window are time in the batch × steps a second, and those before are the rest.
        """
        before, after = self._tokens(steps_per_second, now)
        prompt, cached, prefilled = self.prompt, self.cached, self.prefilled
        decoded_before = before - 1.0 if before > 1.0 else 0.0
        decoded = after - 1.0 if after > 1.0 else 0.0
        context_before = decoded_before * (prompt + (decoded_before + 1.0) / 2)
        context = decoded * (prompt + (decoded + 1.0) / 2) - context_before
        correction = NOTHING
        if self.ended and prefilled:
            correction = self._correction(decoded_before, context_before)
        first = 0.0 if prefilled or after <= 0 else 1.0
        new = first * (prompt - cached)
        pairs = new * (cached + new / 2)
        context += first * cached
        decoded -= decoded_before
        told = self.told
        self.told = (
            told[0] + decoded, told[1] + context, told[2] + new, told[3] + pairs, told[4] + first
        )  # fmt: skip
        again = min(self.read_again, context)
        self.closed_tokens = after
        self.prefilled = prefilled or first > 0
        until = self.until if self.ended else now
        seconds, self.closed_at = max(0.0, until - self.closed_at), now
        work = Work(steps, decoded, context - again, again, new, pairs, first)
        return CallShare(self.id, work, correction, seconds, self.ended)

    def _correction(self, decoded: float, context: float) -> Work:
        """What was done before this window, less what was told of it."""
        told = self.told
        cached = self.cached
        new = self.prompt - cached
        context += cached
        pairs = new * (cached + new / 2)
        if told == (decoded, context, new, pairs, 1.0):  # a stream of which all was seen
            return NOTHING
        return Work(0.0, decoded - told[0], context - told[1], 0.0, new - told[2], pairs - told[3], 1.0 - told[4])

    def _tokens(self, steps_per_second: float, now: float) -> tuple[float, float]:
        """(tokens before this window, tokens up to now), the first ≤ the second."""
        before = self.closed_tokens
        after = self.outcome_tokens
        if after is None:
            if self.streamed:
                after = self.tokens
                if not self.ended and self.joined:
                    after += max(0.0, now - self.tokens_at) * steps_per_second
            elif self.counted:
                after = before + self.in_window + (0.0 if self.prefilled else 1.0)
            else:
                after = before
            after = max(before, min(after, max(self.output_limit, before, self.tokens)))
            return before, after
        if self.prefilled and not self.streamed:
            before = min(max(after - self.in_window, 1.0), after)
        return min(before, after), after
