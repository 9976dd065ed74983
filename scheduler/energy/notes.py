"""What happened to calls since the last probe? It is noted down as it happens, and reckoned with for all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scheduler.energy.columns import (
    CACHED_KNOWN,
    ENDED_AT,
    ESTIMATE,
    FORECAST,
    JOINED_AT,
    JOINS_AT,
    NAN,
    OUTCOME,
    PROMPT,
    SENT_AT,
    STREAMED,
    TOKENS,
    TOKENS_AT,
    known,
    numbers,
)

if TYPE_CHECKING:
    from scheduler.energy.columns import Columns, Floats, Places
    from scheduler.energy.prefills import PrefillWatch

RATE = 0.2
RATIO_KEPT = 0.99
"""Of the sums of prompt tokens, said and guessed, a call."""


class Notes:
    """Of one engine's calls, with what earlier ones teach of those to come."""

    def __init__(self, columns: Columns, prefills: PrefillWatch, now: float) -> None:
        self._columns = columns
        self._prefills = prefills
        self.now = now
        """Time never goes back: earlier is as now."""
        self.firsts: dict[int, float] = {}
        """By place, when a stream's first event came."""
        self.progress: list[float] = []
        """Place, tokens, time of each, one after the other."""
        self.ends: list[float] = []
        """Place, time, prompt, cached and output tokens (nan: not said), and whether it was answered, of each."""
        self.ended_since_probe = 0
        self.prompt_ratio = 1.0
        """Tokens that prompts had, against the gateway's estimates."""
        self._prompt_sums = (0.0, 0.0)
        self.first_token_seconds = 0.05
        """From sending to the first token, of streamed calls lately: others are thought to take as long."""

    def take(self, now: float) -> None:
        """All that happened up to now, into the columns."""
        columns = self._columns
        new = columns.take()
        if columns.prefixes:
            table, forecast = columns.table, self._prefills.forecast
            for place in range(new.start, new.stop):
                if (marks := columns.prefixes.get(place)) is not None and not table[CACHED_KNOWN, place]:
                    table[FORECAST, place] = forecast(marks)
        self.now = max(self.now, now)
        if self.firsts:
            self._join(np.array([*self.firsts]), numbers(self.firsts.values(), 1)[0])
            self.firsts.clear()
        if self.progress:
            self._advance(numbers(self.progress, 3))
            self.progress.clear()
        if self.ends:
            self._end(numbers(self.ends, 6))
            self.ends.clear()
        # Those that are no streams are thought to be prefilled by now.
        table = columns.table
        joins = table[JOINS_AT]
        due = joins <= np.minimum(table[ENDED_AT], self.now)
        table[JOINED_AT] = np.where(due, np.fmin(table[JOINED_AT], joins), table[JOINED_AT])

    def _join(self, places: Places, times: Floats) -> None:
        """First tokens."""
        table = self._columns.table
        fresh = ~known(table[JOINED_AT, places])
        places, times = places[fresh][::-1], times[fresh][::-1]  # the first that is told of a call is written last
        if not len(places):
            return
        streams = table[STREAMED, places] > 0
        took = (times - table[SENT_AT, places])[streams]
        kept = (1.0 - RATE) ** np.arange(len(took))
        self.first_token_seconds += float((RATE * kept * (took - self.first_token_seconds)).sum())
        table[JOINED_AT, places] = table[TOKENS_AT, places] = times
        table[TOKENS, places] = np.maximum(table[TOKENS, places], 1.0)
        self.now = max(self.now, float(times[0]))

    def _advance(self, progress: Floats) -> None:
        """Tokens seen: (places, tokens, times)."""
        table, places = self._columns.table, progress[0].astype(np.intp)
        self._join(places, progress[2])
        np.maximum.at(table[TOKENS], places, progress[1])
        table[TOKENS_AT, places] = progress[2]

    def _end(self, ends: Floats) -> None:
        """Calls that are over: see `ends`."""
        table, places = self._columns.table, ends[0].astype(np.intp)
        _, times, prompts, cached, output, answered = ends
        self.now = max(self.now, float(times[-1]))
        self.ended_since_probe += len(places)
        table[ENDED_AT, places] = times
        said = known(prompts)
        if said.any():
            self._ratios_seen(prompts[said], table[ESTIMATE, places[said]])
            table[PROMPT, places[said]] = prompts[said]
        told = known(cached)
        if told.any():
            self._prefills.told(places[told], np.minimum(cached[told], table[PROMPT, places[told]]))
        # An embedding has no output, and a prompt that was computed all the same.
        streams = table[STREAMED, places] > 0
        outcome = np.where(known(output), output, np.where(streams, table[TOKENS, places], NAN))
        table[OUTCOME, places] = np.where(answered > 0, np.maximum(outcome, 1.0), NAN)

    def _ratios_seen(self, prompts: Floats, estimates: Floats) -> None:
        some = (estimates > 0) & (prompts > 0)
        count = int(some.sum())
        if count:
            weights = RATIO_KEPT ** np.arange(count - 1, -1, -1)
            said, guessed = (RATIO_KEPT**count * before for before in self._prompt_sums)
            said, guessed = said + float(weights @ prompts[some]), guessed + float(weights @ estimates[some])
            self._prompt_sums = said, guessed
            self.prompt_ratio = said / guessed
