"""What is known of each call at an engine? Columns of numbers, filled by the batch: an event costs an append."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    from scheduler.energy.batch import Prefixes

    Floats = npt.NDArray[np.float64]
    Places = npt.NDArray[np.intp]

NAN, INFINITE = float("nan"), float("inf")
# Told when a call is sent, in this order.
SENT_AT, PROMPT, ESTIMATE, LIMIT, STREAMED, JOINS_AT = range(6)
"""Seconds; tokens as far as is known, and as the gateway guessed it; output tokens at most; no stream is a black box
until its end; when it is thought to be prefilled."""
TOLD_WHEN_SENT = 6
CACHED, CACHED_KNOWN = range(6, 8)
"""Tokens of the prompt that were cached."""
JOINED_AT, ENDED_AT, OUTCOME, TOKENS, TOKENS_AT = range(8, 13)
"""Its first token was there, or thought to be (nan: not so far); it is over (inf: not so far); output tokens as the
engine counted them; as the events seen count them, and when."""
WAITING, COUNTED, FORECAST, COMPANY = range(13, 17)
"""Not known to be prefilled; known to be; tokens thought to be cached; with whom it was prefilled (below 0: nobody)."""
PREFILLED, PREFILL_SHARE, CLOSED_TOKENS, CLOSED_AT = range(17, 21)
"""Its prefill is in a window that has closed, and its part of that step; tokens as the last window was told; the last
edge, or when it was sent if that was later."""
TOLD = slice(21, 26)
"""What windows that have closed were told: decode, context, prefill, pairs, prompts."""
TOLD_STEPS = 26
CARRIED = slice(27, 30)
"""Integrals since its last mark that no window could use so far: see `Interval` in batch.py."""
ENTERED_AT, ENTERED_SHARED, ENTERED_STEPS = range(30, 33)
"""See stays.py; nan: it shares no steps so far."""
STEP_TOKENS, STEP_BEFORE = range(33, 35)
"""Of the step that it was prefilled in: see bursts.py."""
SIZE = 35
_FIRST = np.zeros((SIZE, 1))
_FIRST[[JOINED_AT, OUTCOME, ENTERED_AT]] = NAN
_FIRST[ENDED_AT] = INFINITE
_FIRST[WAITING] = 1.0
_FIRST[COMPANY] = -1.0
ROOM = 256


def known(values: Floats) -> npt.NDArray[np.bool_]:
    """Those that are not nan."""
    return ~np.isnan(values)


def numbers(noted: Collection[float], each: int) -> Floats:
    """What was noted down of some, `each` numbers of one after the other, as `each` rows."""
    return np.fromiter(noted, np.float64, len(noted)).reshape(-1, each).T


class Columns:
    """Calls in the order of their sending, at the engine or ended since the last edge; `forget` drops those."""

    def __init__(self) -> None:
        self._table = np.empty((SIZE, ROOM))
        self.calls = 0
        """Whose numbers are in the table; `ids` may be more, until `take` is called."""
        self.ids: list[str] = []
        self.prefixes: dict[int, Prefixes] = {}
        """By place, of those that have some."""
        self.sent: list[float] = []
        """TOLD_WHEN_SENT numbers of each call that is not in the table."""

    @property
    def table(self) -> Floats:
        """(SIZE, calls): rows are columns of calls."""
        return self._table[:, : self.calls]

    def take(self) -> slice:
        """Those that were sent since the last time, into the table: their places."""
        before, after = self.calls, len(self.ids)
        if after > self._table.shape[1]:
            wider = np.empty((SIZE, 2 * after))
            wider[:, :before] = self.table
            self._table = wider
        if after > before:
            new = self._table[:, before:after]
            new[:] = _FIRST
            new[:TOLD_WHEN_SENT] = numbers(self.sent, TOLD_WHEN_SENT)
            new[CLOSED_AT] = new[TOKENS_AT] = new[SENT_AT]
            self.sent.clear()
            self.calls = after
        return slice(before, after)

    def forget(self) -> dict[str, int]:
        """Those that have ended: the places of the others by their ids."""
        going_on = self.table[ENDED_AT] == INFINITE
        kept = np.flatnonzero(going_on)
        if len(kept) < self.calls:
            self._table[:, : len(kept)] = self._table[:, kept]
            self.ids = list(compress(self.ids, going_on.tolist()))
            self.calls = len(kept)
            if self.prefixes:
                places = zip(kept.tolist(), range(len(kept)), strict=True)
                self.prefixes = {new: self.prefixes[old] for old, new in places if old in self.prefixes}
        return dict(zip(self.ids, range(self.calls), strict=True))
