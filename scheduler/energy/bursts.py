"""Which prompts were computed in one step, and right after which others? A power limit leaves the less of them."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scheduler.energy.columns import Floats
    from scheduler.energy.stays import Pace

BUDGET_TOKENS = 8192.0
"""Of a step: vLLM's `max_num_batched_tokens` on large cards."""
FRONTEND_SECONDS = 0.002
STEPS_BEFORE, SCHEDULED_AHEAD = 1.5, 1.0
"""A newcomer waits for half of the step that runs, and the next is scheduled already: it is in the one after."""
LEAST_SECONDS = 1e-3


class Steps(NamedTuple):
    """The steps that some prompts were computed in, of each prompt: shape (prompts,)."""

    tokens: Floats
    """Of all prompts in its step."""
    before: Floats
    """What the limiter's average was when the step began: 0 as while decoding, 1 as in the midst of long prompts."""


class Bursts:
    """One engine's queue of prompts, from when they were sent and how long steps are thought to take.

    Prompts that wait together share a step, first come first, and those that come while it runs are in the next. The
    card's limiter acts on an average of some 30 ms, which goes on from step to step and fades while only decoding.
    """

    def __init__(self) -> None:
        self._free_at = self._average = 0.0

    def steps(self, sent: Floats, tokens: Floats, pace: Pace) -> Steps:
        """Of prompts in the order of their sending, none earlier than those that were asked about before."""
        count, each = len(sent), max(pace.decode_seconds, LEAST_SECONDS)
        comes = (sent + FRONTEND_SECONDS).tolist()
        behind = [0.0, *accumulate(tokens.tolist())]
        fades = max(pace.average_seconds, LEAST_SECONDS)
        free_at, average = self._free_at, self._average
        ends, before = [], []
        done, place = 0.0, 0
        while place < count:
            first = comes[place]
            start = max(free_at, first + STEPS_BEFORE * each)
            if free_at > first:  # it comes while prompts are computed
                start = max(free_at, first + SCHEDULED_AHEAD * each)
            scheduled = max(start - SCHEDULED_AHEAD * each, first)
            until = min(behind[bisect_right(comes, scheduled, place)], done + BUDGET_TOKENS)
            average *= exp(-max(start - free_at, 0.0) / fades)
            ends.append(until)
            before.append(average)
            after = bisect_right(behind, until, place) - 1
            lasts = each + pace.prompt_token_seconds * (until - done) + pace.prompt_seconds * max(after - place, 1)
            average = 1.0 - (1.0 - average) * exp(-lasts / fades)
            free_at, done, place = start + lasts, until, after
        self._free_at, self._average = free_at, average
        # A prompt that is cut belongs to the step with its middle.
        middle = np.array(behind[1:]) - tokens / 2
        at = np.minimum(np.searchsorted(ends, middle), len(ends) - 1)
        return Steps(np.diff(ends, prepend=0.0)[at], np.array(before)[at])
