"""Where does a window begin and end, and who did what in it? Calls, samples and counters in, windows out."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.batch import BatchClock
from scheduler.energy.crosscheck import BypassWatch, Moved, moved
from scheduler.energy.prefills import PrefillWatch
from scheduler.energy.progress import LiveCall
from scheduler.energy.samples import Reading, joules_at
from scheduler.energy.window import CallShare, Energy, Window, work_of

if TYPE_CHECKING:
    from scheduler.energy.batch import Prefixes
    from scheduler.energy.window import Counters, MeterSample, Why
    from scheduler.energy.work import Work

RATE = 0.2
STEPS_PER_SECOND_FIRST = 50.0
RATIO_KEPT = 0.99
"""Of the sums of prompt tokens, said and guessed, a call."""


class WindowRule(NamedTuple):
    """How windows are cut."""

    window_seconds: float = 2.4
    """At least so long: 2.5 s with a probe each 0.5 s, 3 s with one each second. Fit on 2 s or more, report on 5: the
    counter moves each 100 ms."""
    frontend_seconds: float = 0.003
    """Of each busy stretch: HTTP and tokenizer before the engine's core has the call, and behind it."""
    calls_max: int = 16_384
    """At the engine and ended since the last edge; further ones are left out and the window is marked."""


class _Open(NamedTuple):
    """A window whose calls are counted and whose energy is still to be read."""

    start: float
    end: float
    shares: tuple[CallShare, ...]
    busy_seconds: float
    work: Work
    correction: Work
    steps_counted: bool
    why: tuple[Why, ...]


class WindowMaker:
    """One engine's. Tell it of calls as they happen, of samples and of probes; windows come out of the last two.

    A window ends at a probe of the engine's counters (at a sample, for an engine that has none) once it is long enough,
    and is given out with the first sample behind that, which says how much energy it took. Before a probe is told,
    `progress` should be told of each streamed call: then nothing has to be guessed of them. Call events cost 1-2 µs.
    """

    def __init__(self, engine: str, now: float, rule: WindowRule | None = None) -> None:
        self.engine = engine
        self.rule = rule or WindowRule()
        self.number = 0
        self.prompt_ratio = 1.0
        """Tokens that prompts had, against the gateway's estimates."""
        self._prompt_sums = (0.0, 0.0)
        self.steps_per_second = STEPS_PER_SECOND_FIRST
        """As measured last, while something decodes."""
        self.first_token_seconds = 0.05
        """From sending to the first token, of streamed calls lately: others are thought to take as long."""
        self._clock = BatchClock(now)
        self._calls: dict[str, LiveCall] = {}
        self._ended: list[LiveCall] = []
        self._joining: deque[tuple[float, LiveCall]] = deque()
        """Calls that are no streams → when they are thought to have been prefilled."""
        self._start = now
        self._start_joules: Energy | None = None
        self._busy_start = self._member_start = 0.0
        self._reading = Reading()
        self._sample: MeterSample | None = None
        self._counters: Counters | None = None
        self._start_counters: Counters | None = None
        self._bypass = BypassWatch()
        self._prefills = PrefillWatch()
        self._ended_since_probe = 0
        self._marks: set[Why] = set()
        self._open: _Open | None = None

    @property
    def since(self) -> float:
        """When the present window began."""
        return self._start

    # --- a call's life ---

    def sent(
        self, call_id: str, prompt_tokens: float, max_output_tokens: float | None, now: float, *,
        streamed: bool, cached_tokens: float | None = None, prefixes: Prefixes = (),
    ) -> None:  # fmt: skip
        """A call was given to the engine. `prompt_tokens`: the gateway's estimate; `cached_tokens`: a forecast, if
        there is one; `prefixes`: beginnings of its prompt, growing: others that have the same read it from one cache.

        A call that is retried is sent again under its id once `failed` was told. ValueError if it is there already.
        """
        if call_id in self._calls:
            raise ValueError(f"call {call_id!r} is at {self.engine} already")
        self._advance(now)
        if len(self._calls) + len(self._ended) >= self.rule.calls_max:
            self._marks.add("calls_left_out")
            return
        self._clock.sent(self.rule.frontend_seconds)
        limit = float("inf") if max_output_tokens is None else max_output_tokens
        call = LiveCall(
            call_id, prompt_tokens * self.prompt_ratio, prompt_tokens, cached_tokens, limit, prefixes, now,
            streamed=streamed,
        )  # fmt: skip
        self._calls[call_id] = call
        self._prefills.add(call)
        if not streamed:
            self._joining.append((now + self.first_token_seconds, call))

    def placed(self, call_id: str, prefixes: Prefixes) -> None:
        """How its prompt begins, found out since it was sent; of use as long as it is not prefilled."""
        call = self._calls.get(call_id)
        if call is not None and not call.joined:
            call.prefixes = prefixes
            self._prefills.foretell(call)

    def first_token(self, call_id: str, now: float) -> None:
        """The first event of a stream. Of a call that is not there: nothing happens, here and below."""
        call = self._calls.get(call_id)
        if call is None or call.joined:
            return
        self._advance(now)
        if call.streamed:
            self.first_token_seconds += RATE * (now - call.sent_at - self.first_token_seconds)
        if not call.joined:
            call.join(self._clock)
        call.tokens, call.tokens_at = max(call.tokens, 1.0), now

    def progress(self, call_id: str, output_tokens: float, now: float) -> None:
        """So many output tokens of a stream were seen up to now."""
        call = self._calls.get(call_id)
        if call is None or not output_tokens:
            return
        if not call.joined:
            self.first_token(call_id, now)
        call.tokens, call.tokens_at = max(output_tokens, call.tokens), now

    def finished(
        self, call_id: str, prompt_tokens: float | None, cached_tokens: float | None, output_tokens: float | None,
        now: float,
    ) -> None:  # fmt: skip
        """An answer is complete. Tokens as the engine counted them; None = it did not say, and estimates stay."""
        call = self._end(call_id, now)
        if call is None:
            return
        if prompt_tokens is not None:
            self._ratio_seen(prompt_tokens, call.prompt_estimate)
            call.prompt = prompt_tokens
        if cached_tokens is not None:
            self._prefills.told(call, min(cached_tokens, call.prompt))
        if output_tokens is None:
            call.outcome_tokens = max(call.tokens, 1.0) if call.streamed else None
        else:  # an embedding has no output, and a prompt that was computed all the same
            call.outcome_tokens = max(output_tokens, 1.0)

    def _ratio_seen(self, prompt_tokens: float, estimate: float) -> None:
        said, guessed = self._prompt_sums
        if estimate > 0 and prompt_tokens > 0:
            said, guessed = RATIO_KEPT * said + prompt_tokens, RATIO_KEPT * guessed + estimate
            self._prompt_sums = said, guessed
            self.prompt_ratio = said / guessed

    def failed(self, call_id: str, now: float) -> bool:
        """It failed, was given up, or its client left: what was seen or thought to be done of it stays its work.
        Returns whether it was there."""
        return self._end(call_id, now) is not None

    def _end(self, call_id: str, now: float) -> LiveCall | None:
        call = self._calls.pop(call_id, None)
        if call is None:
            return None
        self._advance(now)
        call.leave(self._clock)
        self._clock.left()
        self._ended.append(call)
        self._ended_since_probe += 1
        return call

    def _advance(self, now: float) -> None:
        joining, clock = self._joining, self._clock
        while joining and joining[0][0] <= now:
            at, call = joining.popleft()
            if not call.ended and not call.joined:
                clock.advance(at)
                call.join(clock)
        clock.advance(now)

    # --- edges ---

    def counters(self, counters: Counters) -> Window | None:
        """The engine was probed. Ends the window if it is long enough. A window is returned only where its energy was
        waited for in vain: no sample came since its end."""
        self._advance(counters.at)
        self._bypass.probe(counters, len(self._calls) + self._ended_since_probe)
        self._ended_since_probe = 0
        self._see_prefills(counters)
        self._counters = counters
        if self._start_counters is None and counters.at == self._start:
            self._start_counters = counters
        if counters.at - self._start < self.rule.window_seconds:
            return None
        late = self._give(None) if self._open is not None else None
        self._close(counters.at, counters)
        return late

    def sample(self, sample: MeterSample) -> Window | None:
        """The meter was read. Returns the window whose energy is known now, if there is one."""
        before, window = self._sample, None
        if before is not None and sample.at <= before.at:
            return None  # times never go back: a late one says nothing new
        pending = self._open
        if pending is None and self._is_late(sample.at):
            self._advance(sample.at)
            self._close(sample.at, None)
            pending = self._open
        if pending is None or sample.at <= pending.end:
            self._reading.take(sample, before)
        if self._start_joules is None:  # the very first edge
            self._start_joules = sample.joules
            if pending is None:
                self._start_over(sample.at)
        self._sample = sample
        if pending is not None and sample.at >= pending.end:
            if sample.at > pending.end and before is not None and sample.at - before.at > 0:
                self._reading.take(sample, before)
            window = self._give(joules_at(pending.end, before or sample, sample))
            self._reading.take(sample, None)
        return window

    def close(self, now: float) -> Window | None:
        """End the window at once, whatever is missing: at shutdown, or where there are neither samples nor probes."""
        self._advance(now)
        if self._open is not None:
            return self._give(None)
        if now <= self._start:
            return None
        self._close(now, None)
        return self._give(None)

    def restarted(self, now: float) -> None:
        """The engine was started anew: its counters begin again, and this window is not whole."""
        self._advance(now)
        self._marks.add("engine_restarted")
        self._counters = self._start_counters = None

    def _is_late(self, at: float) -> bool:
        """Whether a window must end without the engine's counters: it has none, or they do not come any more."""
        seconds = at - self._start
        return seconds >= self.rule.window_seconds * (1 if self._counters is None else 2)

    def _start_over(self, at: float) -> None:
        """The meter's first sample: energy is counted from here on, and so is work."""
        self._advance(at)
        if self._calls or self._ended:
            return  # what they did before it is in the first window, which the missing edge marks
        self._start = at
        self._busy_start, self._member_start = self._clock.busy_seconds, self._clock.member_seconds

    def _close(self, at: float, counters: Counters | None) -> None:
        clock = self._clock
        if counters is None:
            self._see_prefills(None)
        self._prefills.share_out()
        moves = moved(self._start_counters, counters)
        member_seconds = clock.member_seconds - self._member_start
        calls = [*self._calls.values(), *self._ended]
        self._measure_steps(calls, moves.steps, member_seconds)
        rate = self.steps_per_second
        parts = [call.part(clock, rate) for call in calls]
        factor, extra = _scale(sum(parts), len(parts), moves.steps)
        shares = tuple(call.close(part * factor + extra, rate, at) for call, part in zip(calls, parts, strict=True))
        work, correction = work_of(shares)
        why = self._why(at, counters, moves, work + correction, calls)
        busy = max(0.0, clock.busy_seconds - self._busy_start)
        self._open = _Open(
            self._start, at, shares, min(busy, at - self._start), work, correction, moves.steps is not None, why
        )
        self._start, self._start_counters = at, counters
        self._busy_start, self._member_start = clock.busy_seconds, clock.member_seconds
        self._ended.clear()
        self._marks.clear()

    def _measure_steps(self, calls: list[LiveCall], steps: float | None, member_seconds: float) -> None:
        """Steps a second while something decodes: the engine's count, else what streams advanced by."""
        if steps is not None:
            if member_seconds > 0.05 and steps:
                self.steps_per_second = steps / member_seconds
            return
        tokens = seconds = 0.0
        for call in calls:
            if call.streamed and call.joined and call.tokens_at > call.closed_at:
                tokens += max(0.0, call.tokens - max(call.closed_tokens, 1.0))
                seconds += call.tokens_at - call.closed_at
            elif call.outcome_tokens is not None and not call.prefilled:
                tokens += max(0.0, call.outcome_tokens - 1.0)
                seconds += max(0.0, call.until - call.sent_at - self.first_token_seconds)
        if seconds > 0.05 and tokens:
            self.steps_per_second = tokens / seconds

    def _see_prefills(self, counters: Counters | None) -> None:
        """At each probe: the sooner, the fewer calls there are that it can have been."""
        moves = moved(self._counters, counters)
        for call in self._prefills.probe(moves.prompt_tokens, moves.cached_tokens):
            if not call.joined and not call.ended:
                call.join(self._clock)

    def _why(
        self, at: float, counters: Counters | None, moves: Moved, work: Work, calls: list[LiveCall]
    ) -> tuple[Why, ...]:
        why = set(self._marks)
        if moves.reset:
            why.add("engine_reset")
        if counters is None and self._counters is not None:
            why.add("counters_missing")
        explained = work.decode_tokens + work.prompts
        seconds = sum(at - call.sent_at for call in self._calls.values() if not call.streamed)
        if self._bypass.close(moves.generation_tokens, explained, seconds * self.steps_per_second, len(calls)):
            why.add("bypass")
        return tuple(sorted(why))

    def _give(self, end_joules: Energy | None) -> Window:
        """The open window is complete."""
        pending, reading = self._open, self._reading
        assert pending is not None
        why = set(pending.why) | reading.why
        start = self._start_joules
        energy = Energy() if start is None or end_joules is None else reading.used(start, end_joules)
        if start is None or end_joules is None:  # no sample told of an edge: the meter itself may be well
            why.add("samples_missing")
        elif energy.gpu is None:
            why.add("meter_unavailable")
        self.number += 1
        window = Window(
            self.engine, self.number, pending.start, pending.end, pending.shares, pending.work, pending.correction,
            pending.busy_seconds, energy, reading.limit_watts, reading.limit_moved, reading.throttled, reading.source,
            pending.steps_counted, tuple(sorted(why)),
        )  # fmt: skip
        self._open, self._reading, self._start_joules = None, Reading(), end_joules
        return window

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        clock, calls = self._clock, self._calls
        assert clock.in_flight == len(calls), (clock.in_flight, len(calls))
        assert clock.members == sum(call.joined for call in calls.values())
        assert len(calls) + len(self._ended) <= self.rule.calls_max
        assert all(call.ended for call in self._ended) and not any(call.ended for call in calls.values())


def _scale(parts: float, calls: int, steps: float | None) -> tuple[float, float]:
    """(factor, addend) that make of calls' parts of the steps what the engine counted, where it did."""
    if steps is None or not calls:
        return 1.0, 0.0
    if parts > 0:
        return steps / parts, 0.0
    return 1.0, steps / calls  # all of them are still in prefill
