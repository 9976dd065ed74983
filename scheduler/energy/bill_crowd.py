"""How many calls share an engine's steps? Each call's part of them, in O(1) an event."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

STEPS_BEFORE = 1.5
"""A newcomer waits for half of the step that runs, and the next is scheduled already: it is in the one after."""
FRONTEND_SECONDS = 0.002
DELAY_SECONDS_MAX = 0.1
STALL_SECONDS_MAX = 10.0
"""So much prefill may lie ahead; more is an estimate gone wrong."""


class Pace(NamedTuple):
    """How long steps take lately."""

    step_seconds: float = 0.02
    """A step of one call."""
    call_seconds: float = 0.0
    """Each call makes it so much longer."""
    prompt_token_seconds: float = 0.0
    """Each prompt token that is computed in it, too."""


class Place:
    """A call's: since when it shares steps, and what the crowd's sums were then."""

    __slots__ = ("at", "gone", "inside", "prompt_tokens", "shared", "steps")

    def __init__(self, at: float, prompt_tokens: float) -> None:
        self.at = at
        self.prompt_tokens = prompt_tokens
        self.shared = self.steps = 0.0
        self.inside = False
        self.gone = False


class Crowd:
    """Calls at one engine: Σ over its steps of 1 / calls, from when each is thought to be in them. Times never go back.

    Steps are not of one length: a prompt's step takes as long as dozens of others, in which nobody gets more than one
    token. So the clock here counts steps, as long as they are thought to take, and not seconds.
    """

    def __init__(self) -> None:
        self.at = 0.0
        self.calls = 0
        self.pace = Pace()
        self._steps = self._shared = 0.0
        self._stall_seconds = 0.0
        """Of prompts that are computed now."""
        self._delay_seconds = FRONTEND_SECONDS
        self._coming: deque[Place] = deque()

    def steps_take(self, mean_seconds: float, pace: Pace) -> None:
        """Steps take so long lately, on average and in particular."""
        self._delay_seconds = min(FRONTEND_SECONDS + STEPS_BEFORE * mean_seconds, DELAY_SECONDS_MAX)
        self.pace = pace

    def enter(self, now: float, prompt_tokens: float = 0.0) -> Place:
        """One more, of whose prompt so many tokens are to be computed."""
        self._pass(now)
        place = Place(max(now + self._delay_seconds, self._coming[-1].at if self._coming else 0.0), prompt_tokens)
        self._coming.append(place)
        return place

    def leave(self, place: Place, now: float) -> None:
        """One fewer."""
        self._pass(now)
        if place.inside:
            self.calls -= 1
        else:
            place.gone = True

    def part(self, place: Place, now: float) -> float:
        """Its part of the steps since it came."""
        self._pass(now)
        if not place.inside:
            return 1.0 / (self.calls + 1)
        steps = self._steps - place.steps
        return (self._shared - place.shared) / steps if steps > 0 else 1.0 / self.calls

    def _pass(self, now: float) -> None:
        coming = self._coming
        while coming and coming[0].at <= now:
            place = coming.popleft()
            if place.gone:
                continue
            self._advance(place.at)
            self.calls += 1
            stall = self._stall_seconds + self.pace.prompt_token_seconds * place.prompt_tokens
            self._stall_seconds = min(STALL_SECONDS_MAX, stall)
            place.at, place.shared, place.steps, place.inside = self.at, self._shared, self._steps, True
        if now > self.at:
            self._advance(now)

    def _advance(self, now: float) -> None:
        passed = now - self.at
        if passed <= 0:
            return
        self.at, calls, stall = now, self.calls, self._stall_seconds
        if stall:
            if calls and stall >= passed:
                self._stall_seconds = stall - passed
                return
            passed -= stall
            self._stall_seconds = 0.0
        if calls:
            each, more, _ = self.pace
            steps = passed / (each + more * (calls - 1))
            self._steps += steps
            self._shared += steps / calls
