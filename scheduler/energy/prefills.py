"""Whose prompts did the engine prefill between two probes, and how much of each was cached?"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from scheduler.energy.columns import (
    CACHED,
    CACHED_KNOWN,
    COMPANY,
    COUNTED,
    ENDED_AT,
    FORECAST,
    INFINITE,
    JOINED_AT,
    OUTCOME,
    PREFILLED,
    PROMPT,
    STREAMED,
    WAITING,
    known,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from scheduler.energy.batch import Prefixes
    from scheduler.energy.columns import Columns, Floats, Places

HALF = 0.5
"""A prompt counts as prefilled when the engine's counter moved by so much of its estimated length."""
KEPT = 0.95
"""What the counters say and no call explains is kept for the next probe: its call may show then. It fades."""
CACHED_MOST = 0.99
"""The last token of a prompt is always computed."""
COMPANY_MAX = 64
"""Beyond that many at once, one that is told apart changes little for the others."""
PREFIXES_MAX = 4_096


class PrefillWatch:
    """Calls that are not known to be prefilled yet, in the order of their sending.

    Streams say so themselves by their first token. The others are taken from the engine's counter of prompt tokens:
    what streams do not explain of it is theirs, first come first.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._prompt_tokens = self._cached_tokens = 0.0
        """Counted and not explained yet; below 0: explained and not counted yet."""
        self._companies = 0
        self._owed: dict[int, float] = {}
        """By company: tokens that some of it had cached less than was thought, and that others must have had."""
        self._prefixes: OrderedDict[Hashable, None] = OrderedDict()
        """Seen prefilled: a further call with the same will find it cached."""

    def forecast(self, prefixes: Prefixes) -> float:
        """As much of a prompt is thought to be cached as of its beginnings was seen prefilled."""
        found = 0.0
        for key, tokens in prefixes:
            if key not in self._prefixes:
                break
            found = tokens
        return found

    def probe(self, prompt_tokens: float | None, cached_tokens: float | None) -> Places:
        """The engine's counters moved by so much since the last probe (None = not known): the places of calls that are
        known to be prefilled now, with their CACHED set and COUNTED. Those that ended without are forgotten."""
        table = self._columns.table
        waiting = np.flatnonzero(table[WAITING] > 0)
        if not len(waiting):
            self._prompt_tokens = self._cached_tokens = 0.0
            return waiting
        some = table[:, waiting]
        # Streams with a first token, and calls with an answer; what ended without one is dropped.
        joined, streamed = known(some[JOINED_AT]), some[STREAMED] > 0
        sure = (some[OUTCOME] > 0) | (streamed & joined)
        gone = ~sure & (some[ENDED_AT] < INFINITE)
        rest = ~(sure | gone)
        if prompt_tokens is None:
            fresh = np.concatenate([waiting[sure], waiting[rest & joined]])
            self._prompt_tokens = 0.0
        else:
            left = KEPT * self._prompt_tokens + prompt_tokens - float(some[PROMPT][sure].sum())
            black = rest & ~streamed
            prompts = some[PROMPT][black]
            behind = np.cumsum(prompts)
            explained = left - behind + prompts >= HALF * prompts
            count = len(prompts) if explained.all() else int(np.argmin(explained))
            self._prompt_tokens = left - (float(behind[count - 1]) if count else 0.0)
            fresh = np.concatenate([waiting[sure], waiting[black][:count]])
        table[WAITING, waiting[gone]] = 0.0
        table[WAITING, fresh] = 0.0
        table[COUNTED, fresh] = 1.0
        if self._columns.prefixes:
            self._seen(fresh)
        self._share_cached(fresh, cached_tokens)
        if len(fresh) + int(gone.sum()) == len(waiting):  # nothing that could still show: what is left are errors
            self._prompt_tokens = self._cached_tokens = 0.0
        return fresh

    def _seen(self, fresh: Places) -> None:
        of, seen = self._columns.prefixes, self._prefixes
        for place in fresh.tolist():
            for key, _ in of.get(place, ()):
                seen[key] = None
                seen.move_to_end(key)
        while len(seen) > PREFIXES_MAX:
            seen.popitem(last=False)

    def told(self, places: Places, cached_tokens: Floats) -> None:
        """The engine said how much of some calls' prompts was cached. What they were thought to have more (or less) is
        given to those that were prefilled with them when the window closes (`share_out`)."""
        table = self._columns.table
        company = table[COMPANY, places]
        owing = (company >= 0) & (table[COUNTED, places] > 0) & (table[PREFILLED, places] == 0)
        if owing.any():
            more = table[CACHED, places] - cached_tokens
            for number, tokens in zip(company[owing].tolist(), more[owing].tolist(), strict=True):
                self._owed[number] = self._owed.get(number, 0.0) + tokens
        table[COMPANY, places] = -1.0
        table[CACHED, places] = cached_tokens
        table[CACHED_KNOWN, places] = 1.0

    def share_out(self) -> None:
        """A window closes: of those prefilled together, what some are known to have had less the others had more, if no
        window was told of them."""
        table = self._columns.table
        for company, difference in self._owed.items():
            others = np.flatnonzero(
                (table[COMPANY] == company) & (table[CACHED_KNOWN] == 0) & (table[PREFILLED] == 0)
            )  # fmt: skip
            prompts = table[PROMPT, others]
            whole = float(prompts.sum())
            if whole > 0:
                cached = table[CACHED, others] + difference * prompts / whole
                table[CACHED, others] = np.clip(cached, 0.0, CACHED_MOST * prompts)
        self._owed.clear()

    def _share_cached(self, fresh: Places, cached_tokens: float | None) -> None:
        table = self._columns.table
        told = table[CACHED_KNOWN, fresh] > 0
        unknown = fresh[~told]
        if 1 < len(unknown) <= COMPANY_MAX:
            self._companies += 1
            table[COMPANY, unknown] = float(self._companies)
        prompts = table[PROMPT, unknown]
        cached = np.minimum(table[FORECAST, unknown], CACHED_MOST * prompts)
        if cached_tokens is None:
            self._cached_tokens = 0.0
            table[CACHED, unknown] = cached
            return
        left = KEPT * self._cached_tokens + cached_tokens - float(table[CACHED, fresh[told]].sum())
        forecast = float(cached.sum())
        room = CACHED_MOST * float(prompts.sum()) - forecast
        more = left - forecast
        if more < 0 < forecast:  # less was cached than was forecast
            cached = cached * max(0.0, 1 + more / forecast)
        elif more > 0 < room:
            cached = cached + min(1.0, more / room) * (CACHED_MOST * prompts - cached)
        table[CACHED, unknown] = cached
        self._cached_tokens = left - float(cached.sum())
