"""A scheduler with engines that may be parked, driven by hand: an engine's side is played by the test."""

from __future__ import annotations

from typing import Any

from scheduler.actions import Dispatch, Park, Reject, Wake
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import CallArrived, CallFinished, EngineLoad, EngineSpec, EngineStatus, Tick
from scheduler.parking import ParkingRules
from scheduler.parking_events import EngineAsleep, EngineParked, EngineWoken

IDLE_SECONDS = 30.0
WAKE_SECONDS = 10.0


class Desk:
    """Engines a, b, c…; each event is followed by `validate`. `said` has all actions, by time."""

    def __init__(
        self, names: str = "ab", *, policy: str = "fifo", rules: ParkingRules | None = None, most: int = 4,
        models: dict[str, tuple[str, ...]] | None = None,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.names = names
        self.most = most
        config = SchedulerConfig(self.specs(names), policy=policy, parking=rules or ParkingRules(wake_from_calls=4))
        self.scheduler = Scheduler(config, self.now)
        self.said: list[Any] = []
        self.calls = 0
        for name in names:
            self.tell(EngineStatus(name, True, (models or {}).get(name, ("m",))))
            self.load(name)

    def specs(self, names: str, *, park: str | None = None) -> tuple[EngineSpec, ...]:
        """All parkable, or those in `park`."""
        return tuple(
            EngineSpec(name, self.most, park is None or name in park, IDLE_SECONDS, WAKE_SECONDS) for name in names
        )

    def tell(self, event: Any) -> list[Any]:
        """One event."""
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.validate()
        self.said += actions
        return actions

    def load(self, name: str, running: int | None = 0) -> None:
        """What its /metrics say."""
        self.tell(EngineLoad(name, running, None if running is None else 0, 0.0))

    def awake(self, names: str | None = None) -> None:
        """They say that they do not sleep."""
        for name in self.names if names is None else names:
            self.tell(EngineAsleep(name, False))

    def call(self, model: str = "m") -> str:
        """A call arrives."""
        self.calls += 1
        self.tell(CallArrived(f"c{self.calls}", "-", model, "", 10, 10))
        return f"c{self.calls}"

    def done(self, call_id: str) -> None:
        """It is answered."""
        self.tell(CallFinished(call_id, 10, 0, 10))

    def wait(self, seconds: float) -> list[Any]:
        """So much time passes, with a tick each second; returns what was said meanwhile."""
        before = len(self.said)
        for _ in range(round(seconds)):
            self.now += 1.0
            self.tell(Tick())
        return self.said[before:]

    def state(self, name: str) -> str:
        """Of an engine."""
        return self.scheduler.parking.sleepers[name].state

    def park_all_but(self, name: str) -> None:
        """All others sleep."""
        self.awake()
        moves = parks(self.wait(IDLE_SECONDS + 1))
        assert name not in moves
        for other in moves:
            self.tell(EngineParked(other, True, 1.0))
        assert [each for each in self.names if self.state(each) == "awake"] == [name]


def parks(actions: list[Any]) -> list[str]:
    """The engines that were to be put to sleep."""
    return [each.engine for each in actions if isinstance(each, Park)]


def wakes(actions: list[Any]) -> list[tuple[str, str]]:
    """Who was to be woken, and why."""
    return [(each.engine, each.why) for each in actions if isinstance(each, Wake)]


def sent(actions: list[Any]) -> list[tuple[str, str]]:
    """Which call went where."""
    return [(each.call_id, each.engine) for each in actions if isinstance(each, Dispatch)]


def refused(actions: list[Any]) -> list[tuple[str, str]]:
    """Which call was refused, and the word for why."""
    return [(each.call_id, each.reason) for each in actions if isinstance(each, Reject)]


__all__ = ["Desk", "EngineAsleep", "EngineParked", "EngineWoken", "parks", "refused", "sent", "wakes"]
