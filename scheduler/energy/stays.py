"""How many calls shared the engine's steps during a call's stay? Its part of them, in steps and not in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.energy.columns import (
    CACHED,
    ENDED_AT,
    ENTERED_AT,
    ENTERED_SHARED,
    ENTERED_STEPS,
    FORECAST,
    PROMPT,
    SENT_AT,
    known,
)

if TYPE_CHECKING:
    from scheduler.energy.columns import Floats, Places
    from scheduler.energy.model.steps import StepPrices
    from scheduler.energy.window import Window

STEPS_BEFORE = 1.5
"""A newcomer waits for half of the step that runs, and the next is scheduled already: it is in the one after."""
FRONTEND_SECONDS = 0.002
DELAY_SECONDS_MAX = 0.1
STALL_SECONDS_MAX = 10.0
"""So much prefill may lie ahead; more is an estimate gone wrong."""

STEPS_LEAST = 1e-6
"""Fewer are rounding: it was there while a prompt was computed only."""


class Pace(NamedTuple):
    """How long steps take lately."""

    step_seconds: float = 0.02
    """A step of one call."""
    call_seconds: float = 0.0
    """Each call makes it so much longer."""
    prompt_token_seconds: float = 0.0
    """Each prompt token that is computed in it, too."""
    mean_seconds: float = 0.0
    """All that is computed, over the steps."""
    decode_seconds: float = 0.02
    """A mean step without prompts."""
    prompt_seconds: float = 0.0
    """Further time of each prompt."""
    average_seconds: float = 0.0
    """Of the power that a limiter acts on; 0: no limit is near."""


def pace_of(believed: StepPrices | None, window: Window) -> Pace:
    """By what a model says of a window's work."""
    work = window.work
    mean = window.busy_seconds / work.steps if work.steps > 0 else 0.0
    if believed is None or believed.time.step <= 0:
        return Pace(mean_seconds=mean)
    seconds, context, repeated = believed.time, 0.0, 0.0
    if work.decode_tokens > 0:
        context, repeated = work.context_tokens / work.decode_tokens, work.repeated_tokens / work.decode_tokens
    each = seconds.decode_token + seconds.context_token * context + seconds.repeated_token * repeated
    decode = seconds.step + each * work.decode_tokens / max(work.steps, 1.0)
    token = seconds.prefill_token
    if work.prefill_tokens > 0:
        token += seconds.attention_pair * work.attention_pairs / work.prefill_tokens
    near = 0.0 if window.limit_watts is None else believed.cap.average_seconds
    return Pace(seconds.step + each, each, token, mean, decode, believed.prompt_seconds, near)


class Stays:
    """Calls at one engine: Σ over its steps of 1 / calls, from when each is thought to be in them.

    Steps are not of one length: a prompt's step takes as long as dozens of others, in which nobody gets more than one
    token. So the clock here counts steps, as long as they are thought to take, and not seconds.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._at = 0.0
        self._calls = 0
        self._stall_seconds = 0.0
        """Of prompts that are computed now."""
        self._steps = self._shared = 0.0

    def close(self, table: Floats, now: float) -> Floats:
        """A window ends: of each call that has ended in it the part of its stay's steps, shape (calls,); of others it
        means nothing."""
        delay = min(FRONTEND_SECONDS + STEPS_BEFORE * self.pace.mean_seconds, DELAY_SECONDS_MAX)
        entered = table[ENTERED_AT]
        outside = np.flatnonzero(~known(entered))
        enters = np.maximum(table[SENT_AT, outside] + delay, self._at)
        inside = (enters < table[ENDED_AT, outside]) & (enters <= now)
        fresh, enters = outside[inside], enters[inside]
        leaving = np.flatnonzero(table[ENDED_AT] <= now)
        stayed = leaving[known(entered[leaving]) | np.isin(leaving, fresh)]
        times, calls, steps, shared = self._pass(table, fresh, enters, stayed, now)
        place = np.arange(1, len(fresh) + 1)
        order = np.argsort(np.concatenate([enters, table[ENDED_AT, stayed]]), kind="stable")
        at = np.empty(len(order), dtype=np.intp)
        at[order] = np.arange(1, len(order) + 1)
        at_enter, at_leave = at[: len(place)], at[len(place) :]
        table[ENTERED_AT, fresh] = enters
        table[ENTERED_STEPS, fresh], table[ENTERED_SHARED, fresh] = steps[at_enter], shared[at_enter]
        part = np.ones(table.shape[1])
        # Who was gone before the next step: that with all that were there then.
        before = np.clip(np.searchsorted(times[1:-1], table[ENDED_AT, leaving], side="right"), 0, len(calls) - 1)
        part[leaving] = 1.0 / (calls[before] + 1.0)
        of_steps = steps[at_leave] - table[ENTERED_STEPS, stayed]
        of_shared = shared[at_leave] - table[ENTERED_SHARED, stayed]
        alone = 1.0 / np.maximum(calls[at_leave] + 1.0, 1.0)
        some = of_steps > STEPS_LEAST
        part[stayed] = np.where(some, of_shared / np.where(some, of_steps, 1.0), alone)
        self._at, self._calls = now, self._calls + len(fresh) - len(stayed)
        self._steps, self._shared = float(steps[-1]), float(shared[-1])
        return part

    def _pass(
        self, table: Floats, fresh: Places, enters: Floats, stayed: Places, now: float
    ) -> tuple[Floats, Floats, Floats, Floats]:  # fmt: skip
        """(times, calls from there on, steps and Σ 1 / calls up to there): at the last edge, each coming and going, and
        now."""
        times = np.concatenate([enters, table[ENDED_AT, stayed]])
        order = np.argsort(times, kind="stable")
        signs = np.ones(len(times))
        signs[len(enters) :] = -1.0
        prompts = np.zeros(len(times))
        prompts[: len(enters)] = table[PROMPT, fresh] - np.maximum(table[CACHED, fresh], table[FORECAST, fresh])
        times = np.concatenate([[self._at], times[order], [max(now, self._at)]])
        passed = np.maximum(np.diff(times), 0.0)
        calls = self._calls + np.concatenate([[0.0], np.cumsum(signs[order])])
        # Seconds of prompts that lie ahead, as a queue: what comes in, less what time takes away, never below 0.
        ahead = np.concatenate(
            [[self._stall_seconds], self.pace.prompt_token_seconds * np.maximum(prompts[order], 0.0)]
        )
        ahead = np.minimum(ahead, STALL_SECONDS_MAX)
        free = np.cumsum(ahead - passed)
        after = free - np.minimum(np.minimum.accumulate(free), 0.0)
        stalled = np.concatenate([[0.0], after[:-1]]) + ahead - after
        self._stall_seconds = min(float(after[-1]), STALL_SECONDS_MAX)
        each, more = self.pace[:2]
        steps = np.maximum(passed - stalled, 0.0) / (each + more * np.maximum(calls - 1.0, 0.0))
        steps[calls == 0] = 0.0
        steps_at = self._steps + np.concatenate([[0.0], np.cumsum(steps)])
        shared_at = self._shared + np.concatenate([[0.0], np.cumsum(steps / np.maximum(calls, 1.0))])
        return times, calls, steps_at, shared_at
