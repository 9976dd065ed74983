"""Whose prompts did the engine prefill between two probes, and how much of each was cached?"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from scheduler.energy.progress import LiveCall

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

    def __init__(self) -> None:
        self._waiting: dict[int, LiveCall] = {}
        self._prompt_tokens = self._cached_tokens = 0.0
        """Counted and not explained yet; below 0: explained and not counted yet."""
        self._owed: dict[int, tuple[list[LiveCall], float]] = {}
        """By company: tokens that some of it had cached less than was thought, and that others must have had."""
        self._prefixes: OrderedDict[Hashable, None] = OrderedDict()
        """Seen prefilled: a further call with the same will find it cached."""

    def add(self, call: LiveCall) -> None:
        """It was sent."""
        self._waiting[id(call)] = call
        self.foretell(call)

    def foretell(self, call: LiveCall) -> None:
        """As much of its prompt is thought to be cached as of its beginnings was seen prefilled."""
        if call.prefixes and not call.cached_known:
            for key, tokens in call.prefixes:
                if key not in self._prefixes:
                    break
                call.cached_forecast = tokens

    def probe(self, prompt_tokens: float | None, cached_tokens: float | None) -> list[LiveCall]:
        """The engine's counters moved by so much since the last probe (None = not known): the calls that are known to
        be prefilled now, with their `cached` set and `counted`. Those that ended without are forgotten."""
        fresh = self._sure()
        if prompt_tokens is None:
            fresh += [call for call in self._waiting.values() if call.joined]
            self._prompt_tokens = 0.0
        else:
            left = KEPT * self._prompt_tokens + prompt_tokens - sum(call.prompt for call in fresh)
            for call in self._waiting.values():
                if call.streamed:
                    continue
                if left < HALF * call.prompt:
                    break
                left -= call.prompt
                fresh.append(call)
            self._prompt_tokens = left
        for call in fresh:
            call.counted = True
            self._waiting.pop(id(call), None)
            for key, _ in call.prefixes:
                self._prefixes[key] = None
                self._prefixes.move_to_end(key)
        while len(self._prefixes) > PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        self._share_cached(fresh, cached_tokens)
        if not self._waiting:  # nothing that could still show: what is left are errors of estimates
            self._prompt_tokens = self._cached_tokens = 0.0
        return fresh

    def _sure(self) -> list[LiveCall]:
        """Streams with a first token, and calls with an answer; what ended without one is dropped."""
        sure, gone = [], []
        for call in self._waiting.values():
            if call.outcome_tokens or (call.streamed and call.joined):
                sure.append(call)
            elif call.ended:
                gone.append(call)
        for call in (*sure, *gone):
            del self._waiting[id(call)]
        return sure

    def told(self, call: LiveCall, cached_tokens: float) -> None:
        """The engine said how much of a call's prompt was cached. What it was thought to have more (or less) is given
        to those that were prefilled with it when the window closes (`share_out`), if no window was told of them."""
        company = call.company
        if company is not None:
            if call.counted and not call.prefilled:
                name = id(company)
                owed = self._owed.get(name)
                self._owed[name] = company, (owed[1] if owed is not None else 0.0) + call.cached - cached_tokens
            call.company = None
        call.cached, call.cached_known = cached_tokens, True

    def share_out(self) -> None:
        """A window closes: of those prefilled together, what some are known to have had less the others had more."""
        for company, difference in self._owed.values():
            others = [each for each in company if not each.cached_known and not each.prefilled]
            prompts = sum([each.prompt for each in others])
            for each in others:
                cached = each.cached + difference * each.prompt / prompts
                each.cached = min(max(cached, 0.0), CACHED_MOST * each.prompt)
        self._owed.clear()

    def _share_cached(self, fresh: list[LiveCall], cached_tokens: float | None) -> None:
        unknown = [call for call in fresh if not call.cached_known]
        if 1 < len(unknown) <= COMPANY_MAX:
            for call in unknown:
                call.company = unknown
        for call in unknown:
            call.cached = min(call.cached_forecast, CACHED_MOST * call.prompt)
        if cached_tokens is None:
            self._cached_tokens = 0.0
            return
        left = KEPT * self._cached_tokens + cached_tokens - sum(call.cached for call in fresh if call.cached_known)
        forecast = sum(call.cached for call in unknown)
        room = CACHED_MOST * sum(call.prompt for call in unknown) - forecast
        more = left - forecast
        if more < 0 < forecast:  # less was cached than was forecast
            share = max(0.0, 1 + more / forecast)
            for call in unknown:
                call.cached *= share
        elif more > 0 < room:
            share = min(1.0, more / room)
            for call in unknown:
                call.cached += share * (CACHED_MOST * call.prompt - call.cached)
        self._cached_tokens = left - sum(call.cached for call in unknown)
