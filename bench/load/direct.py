"""Who passes calls on to the twin where there is no gateway? Nobody decides anything here."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING

from scheduler.actions import Dispatch
from scheduler.events import CallArrived, CallFinished

if TYPE_CHECKING:
    from scheduler.actions import Action
    from scheduler.events import Event

ENGINE = "twin"


class Direct:
    """In a scheduler's place: what finds no place at the engine waits, and the oldest goes first. Plays through the
    scheduler with `passthrough` come to the same rows at up to three times the cost."""

    def __init__(self, places: int = sys.maxsize) -> None:
        self._free = places
        self._waiting: deque[str] = deque()

    def handle(self, event: Event, now: float) -> list[Action]:
        """One event in, actions out."""
        del now
        if type(event) is CallArrived:
            if self._free:
                self._free -= 1
                return [Dispatch(event.call_id, ENGINE)]
            self._waiting.append(event.call_id)
        elif type(event) is CallFinished:
            if self._waiting:
                return [Dispatch(self._waiting.popleft(), ENGINE)]
            self._free += 1
        return []

    def told_of(self, call_id: str) -> None:
        """Nobody says anything of joules."""
