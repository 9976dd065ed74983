"""Which engines sleep? Parked when there is nothing for them to do, woken for calls and ahead of load that is forecast.

Only engines that are configured so (`park`) are ever touched. The state of each:

    unknown ─► awake ─► parking ─► asleep ─► waking ─► awake        (unable: it has no sleep mode; it is awake)

In all but `awake` and `unable` it is sent no calls. What an engine itself says goes before what is believed of it, but
not while it is being put to sleep or woken: then the answer to that says how it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scheduler.actions import Park, Wake, WakeAt
from scheduler.decisions import Why
from scheduler.parking_events import EngineAsleep, EngineParked, EngineWoken
from scheduler.trend import Trend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scheduler.actions import Action
    from scheduler.decisions import DecisionLog
    from scheduler.events import EngineSpec
    from scheduler.state import EngineState, ReadyCalls

LOOK_SECONDS = 1.0
HISTORY_MAX = 64
HELD = "waking"
"""The rule by which a call is held that waits for an engine to wake."""
DOUBLINGS_MOST = 16
"""Of the wait behind failed tries; `rest_seconds` bounds it long before."""
WAKE_RATE = 0.3
"""The share of a wake's seconds in what is expected of the next one."""
State = Literal["unknown", "unable", "awake", "parking", "asleep", "waking"]
RESTING: frozenset[State] = frozenset(("unknown", "parking", "asleep", "waking"))


@dataclass(frozen=True, slots=True)
class ParkingRules:
    """When engines are woken; how often that is tried."""

    awake_least: int = 1
    """Of each model's engines."""
    wake_from_calls: int = 64
    """In flight at each engine that is awake: then another one is woken."""
    wake_tries: int = 3
    retry_seconds: float = 1.0
    """From a failed try to the next one; doubles with each."""
    rest_seconds: float = 60.0
    """After the last try: for so long, calls that need the engine are refused."""


class Said(NamedTuple):
    """A change, for people to read."""

    at: float
    engine: str
    state: State
    why: str


class Sleeper:
    """One engine that may be parked."""

    __slots__ = ("detail", "engine", "failures", "idle_since", "not_before", "since", "spec", "state", "wake_seconds")

    def __init__(self, engine: EngineState, spec: EngineSpec, state: State, now: float) -> None:
        self.engine = engine
        self.spec = spec
        self.state: State = state
        self.since = self.idle_since = now
        self.failures = 0
        """Of parking or waking it, in a row."""
        self.not_before = float("-inf")
        """Parking or waking it is not tried before."""
        self.wake_seconds = spec.wake_seconds
        self.detail = ""


class Parking:
    """The scheduler's: events in, `Park` and `Wake` out. Policies see it: `asleep`, `version`, `wish`."""

    def __init__(
        self,
        rules: ParkingRules,
        engines: Mapping[str, EngineState],
        ready: ReadyCalls,
        decisions: DecisionLog,
        holds_for: Callable[[str, float], bool],
    ) -> None:
        self.rules = rules
        self.sleepers: dict[str, Sleeper] = {}
        self.version = 0
        """Goes up whenever an engine has become another one to those who choose among engines."""
        self.history: deque[Said] = deque(maxlen=HISTORY_MAX)
        self.counts: dict[tuple[str, str, str], int] = {}
        """By engine, action and outcome."""
        self._engines = engines
        self._ready = ready
        self._decisions = decisions
        self._holds_for = holds_for
        self._trends: dict[str | None, Trend] = {}
        self._wished: dict[str | None, None] = {}
        self._look_at = float("-inf")
        self._asked = self._stopped = False
        self.handlers: dict[type, Callable[[Any, float, list[Action]], None]] = {
            EngineAsleep: self._told,
            EngineParked: self._parked,
            EngineWoken: self._woken,
        }

    # --- what policies see ---

    @property
    def asleep(self) -> bool:
        """Is there any engine that could be woken?"""
        return any(sleeper.state == "asleep" for sleeper in self.sleepers.values())

    def wish(self, model: str | None) -> None:
        """A policy would use one engine more for this model."""
        if self.sleepers:
            self._wished[model] = None

    # --- what happens ---

    def configure(self, specs: Sequence[EngineSpec], now: float, *, start: bool = False) -> None:
        """These engines are configured. At the `start` of a process nobody knows which of them sleep."""
        names = {spec.name for spec in specs}
        for name in [name for name in self.sleepers if name not in names]:
            gone = self.sleepers.pop(name).engine
            gone.resting, gone.unwakeable = False, ""
        for spec in specs:
            sleeper = self.sleepers.get(spec.name)
            if sleeper is not None:
                sleeper.spec = spec
            elif spec.park:
                engine = self._engines[spec.name]
                sleeper = self.sleepers[spec.name] = Sleeper(engine, spec, "unknown", now)
                self._set(sleeper, "awake" if engine.seen_healthy and not start else "unknown", "configured", now)
        self._drop_others()

    def _drop_others(self) -> None:
        """Those that are not to be parked any more, when they are awake."""
        for name, sleeper in list(self.sleepers.items()):
            if not sleeper.spec.park and sleeper.state in ("awake", "unable"):
                del self.sleepers[name]

    def _told(self, event: EngineAsleep, now: float, actions: list[Action]) -> None:
        sleeper = self.sleepers.get(event.engine)
        if sleeper is None or sleeper.state in ("parking", "waking"):
            return
        if event.asleep is None:
            if not event.able or sleeper.state == "unknown":
                self._set(sleeper, "unable", event.detail, now)
        elif event.asleep and sleeper.state != "asleep":
            sleeper.failures, sleeper.not_before = (
                0,
                float("-inf"),
            )  # what failed was parking it; waking is another thing
            self._set(sleeper, "asleep", "it was found asleep", now)
        elif not event.asleep and sleeper.state != "awake":
            if sleeper.state == "asleep":
                sleeper.failures, sleeper.detail = 0, ""
            self._set(sleeper, "awake", "it was found awake", now)

    def _parked(self, event: EngineParked, now: float, actions: list[Action]) -> None:
        sleeper = self.sleepers.get(event.engine)
        self._count(event.engine, "park", done=event.done)
        if sleeper is None or sleeper.state != "parking":
            return
        if event.done:
            sleeper.failures, sleeper.detail = 0, ""
            self._set(sleeper, "asleep", "", now)
            return
        self._failed(sleeper, event.detail, now)
        self._set(sleeper, "unknown", f"it could not be parked: {event.detail}", now)

    def _woken(self, event: EngineWoken, now: float, actions: list[Action]) -> None:
        sleeper = self.sleepers.get(event.engine)
        self._count(event.engine, "wake", done=event.done)
        if sleeper is None or sleeper.state != "waking":
            return
        if event.done:
            sleeper.wake_seconds += WAKE_RATE * (event.seconds - sleeper.wake_seconds)
            sleeper.failures, sleeper.detail = 0, ""
            self._set(sleeper, "awake", "", now)
            return
        self._failed(sleeper, event.detail, now)
        self._set(sleeper, "asleep", f"it could not be woken: {event.detail}", now)
        if sleeper.failures >= self.rules.wake_tries:
            sleeper.not_before = now + self.rules.rest_seconds
            sleeper.engine.unwakeable = event.detail or "it does not say why"

    def _failed(self, sleeper: Sleeper, detail: str, now: float) -> None:
        sleeper.failures += 1
        sleeper.detail = detail
        wait = self.rules.retry_seconds * 2.0 ** min(sleeper.failures - 1, DOUBLINGS_MOST)
        sleeper.not_before = now + min(wait, self.rules.rest_seconds)

    def _count(self, engine: str, action: str, *, done: bool) -> None:
        what = engine, action, "ok" if done else "failed"
        self.counts[what] = self.counts.get(what, 0) + 1

    def _set(self, sleeper: Sleeper, state: State, why: str, now: float) -> None:
        engine = sleeper.engine
        sleeper.state, sleeper.since = state, now
        engine.resting = state in RESTING
        engine.unwakeable = ""
        if not engine.resting:
            sleeper.idle_since = now
        if state == "unable":
            sleeper.detail = why
        self.version += 1
        self.history.append(Said(now, engine.name, state, why))

    def stop(self) -> None:
        """The process goes down: nobody is parked or woken by decision any more."""
        self._stopped = True

    # --- deciding ---

    def ticked(self) -> None:
        """A tick came: the next one is to be asked for anew."""
        self._asked = False

    def look(self, now: float, actions: list[Action], *, experiment: bool) -> None:
        """After each event, as long as there are engines that may be parked. While an `experiment` runs all are awake:
        an arm must find engines as the other left them."""
        if self._stopped:
            return
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._timed(now, actions, experiment)
            self._asked = False
        self._demanded(now, actions)
        if not self._asked:
            self._asked = True
            actions.append(WakeAt(self._look_at))

    def _timed(self, now: float, actions: list[Action], experiment: bool) -> None:
        self._drop_others()
        for sleeper in self.sleepers.values():
            if sleeper.engine.unwakeable and now >= sleeper.not_before:
                sleeper.failures, sleeper.engine.unwakeable = 0, ""
            if self._busy(sleeper, now):
                sleeper.idle_since = now
            sleeper.idle_since = max(sleeper.idle_since, sleeper.engine.used_at)
            if sleeper.state == "asleep":
                if experiment or not sleeper.spec.park:
                    self._wake(sleeper, "experiment" if experiment else "configuration", now, actions)
                elif sleeper.engine.in_flight:
                    self._wake(sleeper, "in_use", now, actions)
        wanted = {model: self._wanted(model, now) for model in self._models()}
        for model in self._trends.keys() - wanted.keys():
            del self._trends[model]
        for model, count in wanted.items():
            if self._there(model) < count:
                self._wake_one(model, "forecast" if count > self.rules.awake_least else "least", now, actions)
        if not experiment:
            for name in sorted(self.sleepers, reverse=True):
                if self._may_park(self.sleepers[name], wanted, now):
                    self._set(self.sleepers[name], "parking", "nothing to do", now)
                    actions.append(Park(name))

    def _demanded(self, now: float, actions: list[Action]) -> None:
        """Calls wait, or a policy has asked for more."""
        wished, self._wished = self._wished, {}
        if not self.asleep and not any(sleeper.state == "waking" for sleeper in self.sleepers.values()):
            return
        for model in wished:
            if not self._on_the_way(model):
                self._wake_one(model, "load", now, actions)
        most = self.rules.wake_from_calls
        for model, group in self._ready.by_model.items():
            awake = [engine for engine in self._usable(model) if not engine.resting]
            if awake and not all(engine.in_flight >= min(most, engine.max_in_flight) for engine in awake):
                continue
            if not self._on_the_way(model):
                self._wake_one(model, "full" if awake else "calls", now, actions)
            newest = next(reversed(group.values()))
            if self._on_the_way(model) and (newest.held is None or newest.held.last.rule != HELD):
                self._decisions.held(newest, Why(HELD, None, self._expected(model)), now)

    def _busy(self, sleeper: Sleeper, now: float) -> bool:
        engine = sleeper.engine
        load = engine.load
        others = load is not None and bool(load.running or load.waiting)  # not all calls need come from here
        return engine.in_flight > 0 or others or self._holds_for(engine.name, now)

    def _may_park(self, sleeper: Sleeper, wanted: Mapping[str | None, int], now: float) -> bool:
        engine, load = sleeper.engine, sleeper.engine.load
        if sleeper.state != "awake" or not sleeper.spec.park or now < sleeper.not_before:
            return False
        if load is None or load.running is None or load.waiting is None:
            return False  # whether somebody else uses it is not known
        if now - sleeper.idle_since < sleeper.spec.park_idle_seconds or self._busy(sleeper, now):
            return False
        if engine.removed or not engine.seen_healthy or engine.breaker.state != "closed":
            return False
        return all(self._awake(model) > count for model, count in wanted.items() if engine.serves(model))

    # --- how many are needed, and are there ---

    def _models(self) -> list[str | None]:
        """All that parkable engines are known to serve; None: that is not known of any."""
        known = {model for sleeper in self.sleepers.values() for model in sleeper.engine.models or ()}
        return sorted(known) or [None]  # type: ignore[return-value]

    def _usable(self, model: str | None) -> list[EngineState]:
        return [engine for engine in self._engines.values() if engine.usable and engine.serves(model)]

    def _awake(self, model: str | None) -> int:
        return sum(engine.seen_healthy and not engine.resting for engine in self._usable(model))

    def _there(self, model: str | None) -> int:
        """Awake, or soon to be. One of which nothing is known yet may be."""
        each = [self.sleepers.get(engine.name) for engine in self._usable(model)]
        return sum(sleeper is None or sleeper.state not in ("asleep", "parking") for sleeper in each)

    def _on_the_way(self, model: str | None) -> bool:
        return any(sleeper.state in ("waking", "unknown") and sleeper.engine.serves(model)
                   and sleeper.engine.breaker.state != "open" for sleeper in self.sleepers.values())  # fmt: skip

    def _wanted(self, model: str | None, now: float) -> int:
        """Engines that are to be awake when one that is woken now would be."""
        calls = sum(engine.in_flight for engine in self._usable(model))
        trend = self._trends.setdefault(model, Trend())
        trend.saw(calls, now)
        soon = max(float(calls), trend.ahead(self._expected(model)))
        return max(self.rules.awake_least, ceil(soon / self.rules.wake_from_calls - 1e-9))

    def _expected(self, model: str | None) -> float:
        """Seconds that the slowest to wake of its engines takes."""
        each = [sleeper.wake_seconds for sleeper in self.sleepers.values() if sleeper.engine.serves(model)]
        return max(each, default=0.0)

    def _wake_one(self, model: str | None, why: str, now: float, actions: list[Action]) -> None:
        """The first in the order of names that may be tried."""
        for engine in sorted(self._usable(model), key=lambda engine: engine.name):
            sleeper = self.sleepers.get(engine.name)
            if sleeper is not None and sleeper.state == "asleep" and self._wake(sleeper, why, now, actions):
                return

    def _wake(self, sleeper: Sleeper, why: str, now: float, actions: list[Action]) -> bool:
        if now < sleeper.not_before:
            return False
        self._set(sleeper, "waking", why, now)
        actions.append(Wake(sleeper.engine.name, why))
        return True

    # --- looking ---

    def describe(self, name: str, now: float) -> dict[str, Any] | None:
        """Of one engine, JSON types; None: it may not be parked."""
        sleeper = self.sleepers.get(name)
        if sleeper is None:
            return None
        return {
            "state": sleeper.state,
            "for_seconds": round(now - sleeper.since, 1),
            "idle_seconds": None if sleeper.engine.resting else round(now - sleeper.idle_since, 1),
            "park_idle_seconds": sleeper.spec.park_idle_seconds,
            "wake_seconds": round(sleeper.wake_seconds, 2),
            "failures": sleeper.failures,
            "detail": sleeper.detail,
            "given_up": bool(sleeper.engine.unwakeable),
            "changes": [
                {"seconds_ago": round(now - said.at, 1), "state": said.state, "why": said.why}
                for said in reversed(self.history)
                if said.engine == name
            ],
        }

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        for name, engine in self._engines.items():
            sleeper = self.sleepers.get(name)
            if sleeper is None:
                assert not engine.resting and not engine.unwakeable, f"{name} rests, and nobody will wake it"
                continue
            assert sleeper.engine is engine
            assert engine.resting == (sleeper.state in RESTING), f"{name} is {sleeper.state}"
            assert sleeper.state != "parking" or engine.in_flight == 0, f"{name} is put to sleep under its calls"
            assert not engine.unwakeable or sleeper.state == "asleep"
        assert self.sleepers.keys() <= self._engines.keys()
