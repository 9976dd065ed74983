"""What parking is told of engines. Part of `scheduler.events.Event`."""

from __future__ import annotations

from typing import NamedTuple


class EngineAsleep(NamedTuple):
    """An engine that may be parked was asked whether it sleeps; not while a `Park` or `Wake` is under way.

    `asleep` None: it did not say, `detail` why. `able` False: it cannot be parked at all, as it has no such thing.
    """

    engine: str
    asleep: bool | None
    able: bool = True
    detail: str = ""


class EngineParked(NamedTuple):
    """What became of a `Park`. `detail`: why not."""

    engine: str
    done: bool
    seconds: float
    detail: str = ""


class EngineWoken(NamedTuple):
    """What became of a `Wake`. `detail`: why not."""

    engine: str
    done: bool
    seconds: float
    detail: str = ""
