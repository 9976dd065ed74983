"""How many calls share an engine's steps? Each call's part of them, in O(1) an event."""

from __future__ import annotations

from collections import deque

STEPS_BEFORE = 1.5
"""A newcomer waits for half of the step that runs, and the next is scheduled already: it is in the one after."""
FRONTEND_SECONDS = 0.002
DELAY_SECONDS_MAX = 0.1


class Place:
    """A call's: since when it shares steps, and what the crowd's integral was then."""

    __slots__ = ("at", "gone", "inside", "shared_seconds")

    def __init__(self, at: float) -> None:
        self.at = at
        self.shared_seconds = 0.0
        self.inside = False
        self.gone = False


class Crowd:
    """Calls at one engine: ∫ dt / calls, from when each is thought to be in the engine's steps. Times never go back."""

    def __init__(self) -> None:
        self.at = 0.0
        self.calls = 0
        self._shared_seconds = 0.0
        self._delay_seconds = FRONTEND_SECONDS
        self._coming: deque[Place] = deque()

    def steps_take(self, seconds: float) -> None:
        """A step takes so long lately."""
        self._delay_seconds = min(FRONTEND_SECONDS + STEPS_BEFORE * seconds, DELAY_SECONDS_MAX)

    def enter(self, now: float) -> Place:
        """One more."""
        self._pass(now)
        place = Place(max(now + self._delay_seconds, self._coming[-1].at if self._coming else 0.0))
        self._coming.append(place)
        return place

    def leave(self, place: Place, now: float) -> float:
        """One fewer: its part of the steps since it came, 1 = it was alone."""
        part = self.part(place, now)
        if place.inside:
            self.calls -= 1
        else:
            place.gone = True
        return part

    def part(self, place: Place, now: float) -> float:
        """Its part of the steps since it came."""
        self._pass(now)
        if not place.inside:
            return 1.0 / (self.calls + 1)
        seconds = self.at - place.at
        return (self._shared_seconds - place.shared_seconds) / seconds if seconds > 0 else 1.0 / self.calls

    def _pass(self, now: float) -> None:
        coming = self._coming
        while coming and coming[0].at <= now:
            place = coming.popleft()
            if place.gone:
                continue
            self._advance(place.at)
            self.calls += 1
            place.at, place.shared_seconds, place.inside = self.at, self._shared_seconds, True
        self._advance(now)

    def _advance(self, now: float) -> None:
        if now > self.at:
            if self.calls:
                self._shared_seconds += (now - self.at) / self.calls
            self.at = now
