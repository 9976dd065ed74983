"""How far is each call, and what of its work falls into a window? Known, estimated, and corrected when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scheduler.energy.batch import read_again, shared
from scheduler.energy.columns import (
    CACHED,
    CARRIED,
    CLOSED_AT,
    CLOSED_TOKENS,
    COUNTED,
    ENDED_AT,
    INFINITE,
    JOINED_AT,
    LIMIT,
    OUTCOME,
    PREFILL_SHARE,
    PREFILLED,
    PROMPT,
    SENT_AT,
    STEP_BEFORE,
    STEP_TOKENS,
    STREAMED,
    TOKENS,
    TOKENS_AT,
    TOLD,
    TOLD_STEPS,
    known,
)
from scheduler.energy.window import FEATURES, Shares

if TYPE_CHECKING:
    from scheduler.energy.bursts import Bursts
    from scheduler.energy.columns import Columns, Floats
    from scheduler.energy.stays import Stays


class Closing:
    """A window ends: from `mark`, the last edge, to `now`. Of a call that is streamed the events seen count its tokens;
    another is a black box until its end: from when it is thought to be prefilled it advances by a token a step."""

    def __init__(self, columns: Columns, mark: float, now: float) -> None:
        table = self.table = columns.table
        self.columns = columns
        self.ended = table[ENDED_AT] < INFINITE
        self.streamed = table[STREAMED] > 0
        self.prefilled = table[PREFILLED] > 0
        self.joined = np.flatnonzero(known(table[JOINED_AT]))
        start = np.maximum(table[JOINED_AT, self.joined], mark)
        end = np.maximum(np.minimum(table[ENDED_AT, self.joined], now), start)
        found = shared(start, end)
        self.decoding_seconds = found.occupied_seconds
        """∫ dt while one of them decodes."""
        self.cached_tokens = 0.0
        """Of the prompts that `shares` has prefilled."""
        # The step of its prefill was shared with all that decoded already.
        fresh = table[PREFILL_SHARE, self.joined] == 0
        table[PREFILL_SHARE, self.joined[fresh]] = 1.0 / np.maximum(found.at_joining[fresh], 1.0)
        integrals = table[CARRIED]
        integrals[0, self.joined] += found.seconds
        integrals[1, self.joined] += end - start
        if columns.prefixes:
            integrals[2, self.joined] += self._again(start, end)

    def _again(self, start: Floats, end: Floats) -> Floats:
        places = {place: number for number, place in enumerate(self.joined.tolist())}
        of = self.columns.prefixes.items()
        return read_again(((places[place], marks) for place, marks in of if place in places), start, end)

    def measured_steps_per_second(self, first_token_seconds: float) -> float | None:
        """By what streams advanced by, and calls that were answered; None: there was nothing to tell."""
        table = self.table
        some = self.streamed & known(table[JOINED_AT]) & (table[TOKENS_AT] > table[CLOSED_AT])
        tokens = float(np.maximum(table[TOKENS] - np.maximum(table[CLOSED_TOKENS], 1.0), 0.0)[some].sum())
        seconds = float((table[TOKENS_AT] - table[CLOSED_AT])[some].sum())
        others = ~some & ~self.prefilled & known(table[OUTCOME])
        tokens += float(np.maximum(table[OUTCOME] - 1.0, 0.0)[others].sum())
        stays = table[ENDED_AT] - table[SENT_AT] - first_token_seconds
        seconds += float(np.maximum(stays, 0.0)[others].sum())
        return tokens / seconds if seconds > 0.05 and tokens else None

    def shares(
        self, rate: float, steps: float | None, at: float, stays: Stays, bursts: Bursts, now: float
    ) -> Shares:  # fmt: skip
        """Of all calls. `rate`: steps a second; `steps`: the engine's count, which all shares make together.

        Corrections: where a call has ended, all that it did before this window is computed anew from what the engine
        counted, and the difference to what was told is the correction. Of a call that is no stream, the tokens of this
        window are time in the batch × steps a second, and those before are the rest.
        """
        table, prefilled, ended = self.table, self.prefilled, self.ended
        calls = table.shape[1]
        of_stay = stays.close(table, now)
        carried = table[CARRIED] * rate
        parts = carried[0] + np.where(prefilled, 0.0, table[PREFILL_SHARE])
        factor, extra = _scale(float(parts.sum()), calls, steps)
        work, correction = np.zeros((calls, FEATURES)), np.zeros((calls, FEATURES))
        own_steps = work[:, 0] = parts * factor + extra
        before, after = self._tokens(carried[1], rate, at)
        prompt, cached = table[PROMPT], table[CACHED]
        new = prompt - cached
        pairs = new * (cached + new / 2)
        decoded_before, decoded = np.maximum(before - 1.0, 0.0), np.maximum(after - 1.0, 0.0)
        context_before = decoded_before * (prompt + (decoded_before + 1.0) / 2)
        context = decoded * (prompt + (decoded + 1.0) / 2) - context_before
        told = table[TOLD]
        late = np.flatnonzero(ended & prefilled)
        if len(late):
            was = np.vstack([decoded_before, context_before + cached, new, pairs, np.ones(calls)])[:, late]
            wrong = was - told[:, late]
            correction[late, 1], correction[late, 2] = wrong[0], wrong[1]
            correction[late, 4], correction[late, 5], correction[late, 6] = wrong[2], wrong[3], wrong[4]
        first = np.where(prefilled | (after <= 0), 0.0, 1.0)
        context += first * cached
        self.cached_tokens = float((first * cached).sum())
        decoded = decoded - decoded_before
        again = np.minimum(carried[2], context)
        work[:, 1], work[:, 2], work[:, 3] = decoded, context - again, again
        work[:, 4], work[:, 5], work[:, 6] = first * new, first * pairs, first
        told += np.vstack([decoded, context, first * new, first * pairs, first])
        table[TOLD_STEPS] += own_steps
        seconds = np.maximum(np.where(ended, table[ENDED_AT], at) - table[CLOSED_AT], 0.0)
        more = np.where(ended & known(table[OUTCOME]), table[OUTCOME] * of_stay - table[TOLD_STEPS], 0.0)
        computed = np.where(ended & prefilled, new, told[2])
        table[CLOSED_TOKENS], table[CLOSED_AT] = after, at
        if stays.pace.average_seconds and len(fresh := np.flatnonzero((first > 0) & (new > 0))):
            found = bursts.steps(table[SENT_AT, fresh], new[fresh], stays.pace)
            table[STEP_TOKENS, fresh], table[STEP_BEFORE, fresh] = found
            work[fresh, 7] = new[fresh] / found.tokens
            work[fresh, 8], work[fresh, 9] = new[fresh] * found.tokens, new[fresh] * found.before
        table[PREFILLED] = np.maximum(table[PREFILLED], first)
        # What a black box has in the batch waits until it is known to be prefilled.
        table[CARRIED] *= ~(self.streamed | (table[COUNTED] > 0))
        in_steps = np.maximum(table[STEP_TOKENS], computed), table[STEP_BEFORE].copy()
        return Shares(self.columns.ids.copy(), work, correction, seconds, ended, more, computed, *in_steps)

    def _tokens(self, in_window: Floats, rate: float, at: float) -> tuple[Floats, Floats]:
        """(tokens before this window, tokens up to now), the first ≤ the second."""
        table, ended, prefilled = self.table, self.ended, self.prefilled
        before, outcome = table[CLOSED_TOKENS].copy(), table[OUTCOME]
        going_on = ~ended & known(table[JOINED_AT])
        seen = table[TOKENS] + np.where(going_on, np.maximum(at - table[TOKENS_AT], 0.0) * rate, 0.0)
        guessed = np.where(table[COUNTED] > 0, before + in_window + np.where(prefilled, 0.0, 1.0), before)
        guessed = np.where(self.streamed, seen, guessed)
        most = np.maximum(np.maximum(table[LIMIT], before), table[TOKENS])
        guessed = np.maximum(before, np.minimum(guessed, most))
        said = known(outcome)
        after = np.where(said, outcome, guessed)
        black = said & prefilled & ~self.streamed
        before = np.where(black, np.minimum(np.maximum(after - in_window, 1.0), after), before)
        return np.minimum(before, after), after


def _scale(parts: float, calls: int, steps: float | None) -> tuple[float, float]:
    """(factor, addend) that make of calls' parts of the steps what the engine counted, where it did."""
    if steps is None or not calls:
        return 1.0, 0.0
    if parts > 0:
        return steps / parts, 0.0
    return 1.0, steps / calls  # all of them are still in prefill
