"""Virtual time: simulated engines, and whatever else happens at given moments, in the order of their times."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple, Protocol

from backends.twin.device import TwinDevice
from backends.twin.request import Finished, FirstToken
from scheduler.actions import Abort, Dispatch, Reject, SetCap, SetClock, WakeAt
from scheduler.events import CallFinished, CapApplied, ClientGone, Tick
from scheduler.events import FirstToken as FirstTokenSeen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.twin.engine import TwinEngine
    from backends.twin.request import Event, Request
    from scheduler.actions import Action
    from scheduler.events import CallArrived
    from scheduler.events import Event as SchedulerEvent


class VirtualTime:
    """A clock that jumps to the next thing to do."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._todo: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._engines: list[tuple[TwinEngine, Callable[[Event], None]]] = []

    def add(self, engine: TwinEngine, on_event: Callable[[Event], None]) -> None:
        """Simulate this engine; `on_event` is called with each of its events at the time the client sees it."""
        self._engines.append((engine, on_event))

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do this then; things of the same time are done in the order in which they were asked for."""
        self._count += 1
        heappush(self._todo, (time, self._count, action))

    def run(self, until: float | None = None) -> None:
        """Go on until this time, or until nothing is left to do."""
        todo = self._todo
        while True:
            now = until if not todo else todo[0][0] if until is None or todo[0][0] < until else until
            for engine, _ in self._engines:
                change = engine.next_change()
                if change is not None and (now is None or change < now):
                    now = change
            if now is None:
                return
            for engine, on_event in self._engines:
                for event in engine.advance(now):
                    self._count += 1
                    heappush(todo, (event.at, self._count, lambda see=on_event, event=event: see(event)))  # type: ignore[misc]
            self.now = now
            while todo and todo[0][0] <= now:
                heappop(todo)[2]()
            if until is not None and now >= until:
                return


class Answer(NamedTuple):
    """How a call ended. `reason` None: answered; else the scheduler's word for refusing it."""

    call_id: str
    arrived_at: float
    first_token_at: float | None
    finished_at: float
    cached_tokens: int | None
    reason: str | None = None


class Mind(Protocol):
    """The scheduler, as far as it is needed here."""

    def handle(self, event: SchedulerEvent, now: float) -> list[Action]:
        """One event in, actions out."""


class _Live(NamedTuple):
    request: Request
    done: Callable[[Answer], None]
    arrived_at: float


class World:
    """A scheduler in front of simulated engines: what the gateway does with sockets and timers, in virtual time."""

    def __init__(self, scheduler: Mind, engines: Mapping[str, TwinEngine], now: float = 0.0) -> None:
        self.time = VirtualTime(now)
        self.engines = engines
        self._scheduler = scheduler
        self._calls: dict[str, _Live] = {}
        self._wakes: set[float] = set()
        for engine in engines.values():
            self.time.add(engine, self._engine_event)

    def call(self, arrived: CallArrived, request: Request, done: Callable[[Answer], None]) -> None:
        """A call reaches the gateway now; `done` is called when its answer is complete or refused."""
        assert arrived.call_id == request.id, "a call and its request have the same id"
        self._calls[request.id] = _Live(request, done, self.time.now)
        self.tell(arrived)

    def client_gone(self, call_id: str) -> None:
        """The client leaves; `done` will not be called."""
        self.tell(ClientGone(call_id))
        self._calls.pop(call_id, None)

    def tell(self, event: SchedulerEvent) -> None:
        """Give the scheduler an event and carry out what it says."""
        now = self.time.now
        for action in self._scheduler.handle(event, now):
            if isinstance(action, Dispatch):
                live = self._calls[action.call_id]
                live.request.priority = action.priority or 0
                self.engines[action.engine].submit(live.request, now)
            elif isinstance(action, Reject):
                live = self._calls.pop(action.call_id)
                live.done(Answer(action.call_id, live.arrived_at, None, now, None, action.reason))
            elif isinstance(action, Abort):
                self.engines[action.engine].abort(action.call_id, now)
            elif isinstance(action, SetCap):
                self.tell(self._limited(action))
            elif isinstance(action, SetClock):
                detail = "the twin's clock cannot be locked"
                self.tell(CapApplied(action.engine, action.watts, None, None, now, detail=detail))
            elif isinstance(action, WakeAt) and action.at not in self._wakes:
                self._wakes.add(action.at)
                self.time.at(max(action.at, now), lambda at=action.at: self._wake(at))  # type: ignore[misc]

    def _limited(self, action: SetCap) -> CapApplied:
        """A limit set on the engine's cards."""
        device = TwinDevice(self.engines[action.engine], lambda: self.time.now)
        clamped = device.limits().clamp(action.watts)
        device.set_limit_watts(clamped)
        return CapApplied(action.engine, action.watts, clamped, device.limits().requested_watts, self.time.now)

    def _wake(self, at: float) -> None:
        self._wakes.discard(at)
        self.tell(Tick())

    def _engine_event(self, event: Event) -> None:
        request = event.request
        live = self._calls.get(request.id)
        if live is None:
            return  # its client left while the answer was on its way
        if isinstance(event, FirstToken):
            self.tell(FirstTokenSeen(request.id))
        elif isinstance(event, Finished):
            del self._calls[request.id]
            self.tell(CallFinished(request.id, request.prompt_tokens, request.cached_tokens, request.output_tokens))
            first = request.first_token_at
            live.done(Answer(request.id, live.arrived_at, first, self.time.now, request.cached_tokens))
