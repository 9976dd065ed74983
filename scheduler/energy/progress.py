"""How far is a call, and what of its work falls into a window? Known, estimated, and corrected when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.energy.work import NOTHING, Work, call_work

if TYPE_CHECKING:
    from collections.abc import Hashable

    from scheduler.energy.batch import BatchClock, Group, Marks


class LiveCall:
    """A call at the engine, or one that ended since the last edge.

    Tokens are output tokens. Of a streamed call the events seen count them; another is a black box until its end: from
    when it is thought to be prefilled it advances by a token a step.
    """

    __slots__ = (
        "booked",
        "cached",
        "cached_forecast",
        "cached_known",
        "closed_at",
        "closed_tokens",
        "company",
        "counted",
        "ended",
        "group",
        "id",
        "joined",
        "left_marks",
        "marks",
        "outcome_tokens",
        "output_limit",
        "prefill_share",
        "prefilled",
        "prefix",
        "prompt",
        "prompt_estimate",
        "repeated",
        "sent_at",
        "streamed",
        "tokens",
        "tokens_at",
        "until",
    )

    def __init__(
        self,
        call_id: str,
        prompt: float,
        prompt_estimate: float,
        cached: float | None,
        output_limit: float,
        prefix: tuple[Hashable, float] | None,
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
        self.prefix = prefix
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
        self.booked = NOTHING
        """Sum of what windows that have closed were told, steps left out."""
        self.repeated = 0.0
        self.group: Group | None = None
        self.marks: Marks | None = None
        self.left_marks: Marks | None = None
        self.ended = False
        self.until = now

    def join(self, clock: BatchClock) -> None:
        """Its first token is there, or thought to be: it decodes from now on."""
        self.joined = True
        # The step of its prefill was shared with all that decoded already.
        self.prefill_share = 1.0 / (clock.members + 1)
        self.group = clock.join(self.prefix)
        self.marks = clock.marks(self.group)

    def leave(self, clock: BatchClock) -> None:
        """It is over; what it has of the clock's integrals is kept until the window closes."""
        self.ended = True
        self.until = clock.now
        if self.joined:
            self.left_marks = clock.marks(self.group)
            clock.leave(self.group)
            self.group = None

    def close(self, clock: BatchClock, steps_per_second: float, now: float) -> tuple[Work, Work, float]:
        """The window ends: (work in it with the call's share of steps, not scaled yet; correction; seconds).

        Corrections: where the call has ended, all that it did before this window is computed anew from what the engine
        counted, and the difference to what was told is the correction. Of a call that is no stream, the tokens of
        this window are time in the batch × steps a second, and those before are the rest.
        """
        shared, seconds, repeated = self._integrals(clock)
        steps = steps_per_second * shared + (self.prefill_share if not self.prefilled else 0.0)
        in_window = steps_per_second * seconds
        before, after = self._tokens(in_window, steps_per_second, now)
        prompt, cached = self.prompt, self.cached
        start = call_work(prompt, cached, before) if self.prefilled else NOTHING
        done = call_work(prompt, cached, after)
        correction = NOTHING
        if self.ended and self.prefilled:
            told = self.booked
            correction = start - told._replace(context_tokens=told.context_tokens + told.repeated_tokens)
            correction = correction._replace(repeated_tokens=0.0)
        work = done - start
        again = min(repeated * steps_per_second, max(work.context_tokens, 0.0))
        work = Work(steps, work[1], work[2] - again, again, work[4], work[5], work[6])
        self._told(work, after, clock, now)
        return work, correction, self._stay(now)

    def _integrals(self, clock: BatchClock) -> tuple[float, float, float]:
        if self.marks is None:
            return 0.0, 0.0, 0.0
        now = self.left_marks if self.left_marks is not None else clock.marks(self.group)
        then = self.marks
        return now[0] - then[0], now[1] - then[1], now[2] - then[2]

    def _tokens(self, in_window: float, steps_per_second: float, now: float) -> tuple[float, float]:
        """(tokens before this window, tokens up to now), the first ≤ the second."""
        before = self.closed_tokens
        after = self.outcome_tokens
        if after is None:
            if self.streamed:
                after = self.tokens
                if not self.ended and self.joined:
                    after += max(0.0, now - self.tokens_at) * steps_per_second
            elif self.counted:
                after = before + in_window + (0.0 if self.prefilled else 1.0)
            else:
                after = before
            after = max(before, min(after, max(self.output_limit, before, self.tokens)))
            return before, after
        if self.prefilled and not self.streamed:
            before = min(max(after - in_window, 1.0), after)
        return min(before, after), after

    def _told(self, work: Work, after: float, clock: BatchClock, now: float) -> None:
        self.booked += work._replace(steps=0.0)
        self.closed_tokens = after
        self.prefilled = self.prefilled or after > 0
        if self.joined and not self.ended and (self.streamed or self.counted):
            self.marks = clock.marks(self.group)

    def _stay(self, now: float) -> float:
        until = self.until if self.ended else now
        seconds = max(0.0, until - self.closed_at)
        self.closed_at = now
        return seconds
