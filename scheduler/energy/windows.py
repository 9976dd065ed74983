"""Where does a window begin and end, and who did what in it? Calls, samples and counters in, windows out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.bursts import Bursts
from scheduler.energy.columns import ENDED_AT, FORECAST, INFINITE, JOINED_AT, NAN, SENT_AT, STREAMED, Columns, known
from scheduler.energy.crosscheck import BypassWatch, as_counted, moved
from scheduler.energy.notes import Notes
from scheduler.energy.prefills import PrefillWatch
from scheduler.energy.progress import Closing
from scheduler.energy.samples import Reading, joules_at
from scheduler.energy.stays import Stays
from scheduler.energy.window import Energy, Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.batch import Prefixes
    from scheduler.energy.columns import Places
    from scheduler.energy.crosscheck import Moved
    from scheduler.energy.stays import Pace
    from scheduler.energy.window import Counters, MeterSample, Shares, Why
    from scheduler.energy.work import Work

STEPS_PER_SECOND_FIRST = 50.0


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
    shares: Shares
    busy_seconds: float
    work: Work
    correction: Work
    steps_counted: bool
    why: tuple[Why, ...]
    counted: Work | None


class WindowMaker:
    """One engine's. Tell it of calls as they happen, of samples and of probes; windows come out of the last two.

    A window ends at a probe of the engine's counters (at a sample, for an engine that has none) once it is long enough,
    and is given out with the first sample behind that, which says how much energy it took. Before a probe is told,
    `progress` should be told of each streamed call: then nothing has to be guessed of them.

    What happens to a call is only noted down: what follows from it is reckoned for all calls at once, at each probe and
    at the window's end.
    """

    def __init__(self, engine: str, now: float, rule: WindowRule | None = None) -> None:
        self.engine = engine
        self.rule = rule or WindowRule()
        self.number = 0
        self.steps_per_second = STEPS_PER_SECOND_FIRST
        """As measured last, while something decodes."""
        self.stays, self._bursts = Stays(), Bursts()
        self._columns = Columns()
        self._index: dict[str, int] = {}
        """Calls at the engine: their places among the columns."""
        self._prefills = PrefillWatch(self._columns)
        self._notes = Notes(self._columns, self._prefills, now)
        self._mark = now
        """What time it was at the last edge."""
        self._busy_seconds, self._busy_since = 0.0, now
        self._start = now
        self._start_joules: Energy | None = None
        self._busy_start = 0.0
        self._reading = Reading()
        self._sample: MeterSample | None = None
        self._counters: Counters | None = None
        self._start_counters: Counters | None = None
        self._bypass = BypassWatch()
        self._marks: set[Why] = set()
        self._open: _Open | None = None

    @property
    def prompt_ratio(self) -> float:
        """Tokens that prompts had, against the gateway's estimates, up to the last probe."""
        return self._notes.prompt_ratio

    @property
    def since(self) -> float:
        """When the present window began."""
        return self._start

    def ends_at(self, at: float) -> bool:
        """Whether a probe at this time ends the window."""
        return at - self._start >= self.rule.window_seconds

    def paced(self, pace: Pace) -> None:
        """How long the model says that steps take."""
        self.stays.pace = pace

    # --- a call's life ---

    def sent(
        self, call_id: str, prompt_tokens: float, max_output_tokens: float | None, now: float, *,
        streamed: bool, prefixes: Prefixes = (),
    ) -> None:  # fmt: skip
        """A call was given to the engine. `prompt_tokens`: the gateway's estimate; `prefixes`: beginnings of its
        prompt, growing: others that have the same read it from one cache.

        A call that is retried is sent again under its id once `failed` was told. ValueError if it is there already.
        """
        index, columns, notes = self._index, self._columns, self._notes
        if call_id in index:
            raise ValueError(f"call {call_id!r} is at {self.engine} already")
        ids = columns.ids
        place = len(ids)
        if place >= self.rule.calls_max:
            self._marks.add("calls_left_out")
            return
        if not index:
            self._busy_since = now + self.rule.frontend_seconds
        index[call_id] = place
        ids.append(call_id)
        columns.sent.extend((
            now, prompt_tokens * notes.prompt_ratio, prompt_tokens,
            INFINITE if max_output_tokens is None else max_output_tokens, streamed,
            INFINITE if streamed else now + notes.first_token_seconds,
        ))  # fmt: skip
        if prefixes:
            columns.prefixes[place] = prefixes

    def placed(self, call_id: str, prefixes: Prefixes) -> None:
        """How its prompt begins, found out since it was sent; of use as long as it is not prefilled."""
        place = self._index.get(call_id)
        if place is None or place in self._notes.firsts:
            return
        columns = self._columns
        if place < columns.calls:
            table = columns.table
            if known(table[JOINED_AT, place]):
                return
            table[FORECAST, place] = self._prefills.forecast(prefixes)
        columns.prefixes[place] = prefixes

    def first_token(self, call_id: str, now: float) -> None:
        """The first event of a stream. Of a call that is not there: nothing happens, here and below."""
        if (place := self._index.get(call_id)) is not None:
            self._notes.firsts.setdefault(place, now)

    def progress(self, call_id: str, output_tokens: float, now: float) -> None:
        """So many output tokens of a stream were seen up to now."""
        if (place := self._index.get(call_id)) is not None and output_tokens:
            self._notes.progress.extend((place, output_tokens, now))

    def progressed(self, seen: Iterable[tuple[str, float]], now: float) -> None:
        """The same of many."""
        index = self._index
        more = self._notes.progress
        for call_id, tokens in seen:
            if tokens and (place := index.get(call_id)) is not None:
                more += (place, tokens, now)

    def finished(
        self, call_id: str, prompt_tokens: float | None, cached_tokens: float | None, output_tokens: float | None,
        now: float,
    ) -> None:  # fmt: skip
        """An answer is complete. Tokens as the engine counted them; None = it did not say, and estimates stay."""
        if (place := self._index.pop(call_id, None)) is not None:
            self._notes.ends.extend((
                place, now, NAN if prompt_tokens is None else prompt_tokens,
                NAN if cached_tokens is None else cached_tokens, NAN if output_tokens is None else output_tokens, 1.0,
            ))  # fmt: skip
            if not self._index:
                self._busy_seconds += now - self._busy_since

    def failed(self, call_id: str, now: float) -> bool:
        """It failed, was given up, or its client left: what was seen or thought to be done of it stays its work.
        Returns whether it was there."""
        place = self._index.pop(call_id, None)
        if place is None:
            return False
        self._notes.ends.extend((place, now, NAN, NAN, NAN, 0.0))
        if not self._index:
            self._busy_seconds += now - self._busy_since
        return True

    # --- edges ---

    def counters(self, counters: Counters) -> Window | None:
        """The engine was probed. Ends the window if it is long enough. A window is returned only where its energy was
        waited for in vain: no sample came since its end."""
        self._notes.take(counters.at)
        self._bypass.probe(counters, len(self._index) + self._notes.ended_since_probe)
        self._notes.ended_since_probe = 0
        self._see_prefills(counters)
        self._counters = counters
        if self._start_counters is None and counters.at == self._start:
            self._start_counters = counters
        if not self.ends_at(counters.at):
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
            self._notes.take(sample.at)
            self._close(sample.at, None)
            pending = self._open
        if pending is None or sample.at <= pending.end:
            self._reading.take(sample, before)
        if self._start_joules is None and pending is None:  # the very first edge; one behind a window's end is none
            self._start_joules = sample.joules
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
        self._notes.take(now)
        if self._open is not None:
            return self._give(None)
        if now <= self._start:
            return None
        self._close(now, None)
        return self._give(None)

    def restarted(self, now: float) -> None:
        """The engine was started anew: its counters begin again, and this window is not whole."""
        self._notes.take(now)
        self._marks.add("engine_restarted")
        self._counters = self._start_counters = None

    def _is_late(self, at: float) -> bool:
        """Whether a window must end without the engine's counters: it has none, or they do not come any more."""
        seconds = at - self._start
        return seconds >= self.rule.window_seconds * (1 if self._counters is None else 2)

    def _start_over(self, at: float) -> None:
        """The meter's first sample: energy is counted from here on, and so is work."""
        self._notes.take(at)
        if self._columns.calls:
            return  # what they did before it is in the first window, which the missing edge marks
        self._start = at
        self._busy_start, self._mark = self._busy_until(), self._notes.now

    def _busy_until(self) -> float:
        """∫ dt while a call is at the engine, less `frontend_seconds` of each stretch, up to now."""
        return self._busy_seconds + (self._notes.now - self._busy_since if self._index else 0.0)

    def _close(self, at: float, counters: Counters | None) -> None:
        if counters is None:
            self._see_prefills(None)
        self._prefills.share_out()
        moves = moved(self._start_counters, counters)
        closing = Closing(self._columns, self._mark, self._notes.now)
        self._measure_steps(closing, moves.steps)
        shares = closing.shares(
            self.steps_per_second, moves.steps, at, self.stays, self._bursts, self._notes.now
        )  # fmt: skip
        work, correction = shares.sums()
        counted = as_counted(work, closing.cached_tokens, moves)
        why = self._why(at, counters, moves, work + correction)
        until = self._busy_until()
        busy = max(0.0, until - self._busy_start)
        self._open = _Open(
            self._start,
            at,
            shares,
            min(busy, at - self._start),
            work,
            correction,
            moves.steps is not None,
            why,
            counted,
        )
        self._start, self._start_counters = at, counters
        self._busy_start, self._mark = until, self._notes.now
        self._index = self._columns.forget()
        self._marks.clear()

    def _measure_steps(self, closing: Closing, steps: float | None) -> None:
        """Steps a second while something decodes: the engine's count, else what streams advanced by."""
        if steps is not None:
            if closing.decoding_seconds > 0.05 and steps:
                self.steps_per_second = steps / closing.decoding_seconds
        elif (rate := closing.measured_steps_per_second(self._notes.first_token_seconds)) is not None:
            self.steps_per_second = rate

    def _see_prefills(self, counters: Counters | None) -> None:
        """At each probe: the sooner, the fewer calls there are that it can have been."""
        moves = moved(self._counters, counters)
        fresh: Places = self._prefills.probe(moves.prompt_tokens, moves.cached_tokens)
        table = self._columns.table
        late = ~known(table[JOINED_AT, fresh]) & (table[ENDED_AT, fresh] == INFINITE)
        table[JOINED_AT, fresh[late]] = self._notes.now

    def _why(self, at: float, counters: Counters | None, moves: Moved, work: Work) -> tuple[Why, ...]:
        why = set(self._marks)
        if moves.reset:
            why.add("engine_reset")
        if counters is None and self._counters is not None:
            why.add("counters_missing")
        table = self._columns.table
        explained = work.decode_tokens + work.prompts
        black = (table[ENDED_AT] == INFINITE) & (table[STREAMED] == 0)
        seconds = float((at - table[SENT_AT])[black].sum())
        unsettled = seconds * self.steps_per_second
        if self._bypass.close(moves.generation_tokens, explained, unsettled, table.shape[1]):
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
            pending.steps_counted, tuple(sorted(why)), pending.counted,
        )  # fmt: skip
        self._open, self._reading, self._start_joules = None, Reading(), end_joules
        return window

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        columns, table = self._columns, self._columns.table
        assert len(columns.ids) <= self.rule.calls_max
        assert all(columns.ids[place] == call_id for call_id, place in self._index.items())
        going_on = {place for place in self._index.values() if place < columns.calls}
        ending = {int(place) for place in self._notes.ends[::6]}
        ended = set(np.flatnonzero(table[ENDED_AT] < INFINITE).tolist())
        assert not going_on & (ended | ending)
        assert going_on | ended | {place for place in ending if place < columns.calls} == set(range(columns.calls))
