"""`joule`: the fewest joules such that every workflow meets its deadline with the asked-for probability.

A step costs an engine about the same whatever it computes, so joules are saved by making fewer of them: what can wait
waits until a workflow can wait no longer (its latest start, computed for the company in which it will run), then goes
along with that one as far as its steps cover it. What has begun is held again between its calls wherever that is free.
Where so many wait that steps are full anyway, they go at once (`scheduler.holding` has the parts).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from scheduler.holding.capslack import LOOK_SECONDS, CapSlack
from scheduler.holding.costs import LEARNED_UNSEEN, StepCosts, costs_of
from scheduler.holding.flow import AT_ONCE, Flow, deadline_of, is_for_people
from scheduler.holding.margin import margin_for
from scheduler.holding.room import Room
from scheduler.holding.rules import Rules
from scheduler.holding.telling import why_held, why_sent
from scheduler.holding.turns import APART_SECONDS, Turns
from scheduler.holding.work import IsolatedDurations, work_of_call
from scheduler.policies.base import Choice, Policy, awake_first, fit_for
from scheduler.policies.options import Option
from scheduler.workflow.durations import LearnedDurations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.policies.base import View
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.workflow import Workflow

COSTS_SECONDS = 2.0
"""So often the costs of steps are asked for anew."""
CHOICES_AT_ONCE = 32
"""Of one event: then the gateway's loop does what else there is, for as long as `SOONEST_SECONDS`."""
FLOWS_SWEPT = 1024
"""At so many workflows without a call here, those that are closed are forgotten."""


class Joule(Policy):
    """Holds and releases by what steps cost."""

    name = "joule"
    uses_workflows = True
    options: ClassVar[Mapping[str, Option]] = {
        "misses_share": Option(0.01, "of the deadlines that holding may cost", above=0, below=1),
        "cover_share": Option(
            0.6, "of a call's own time, to be covered by steps that are made anyway for it to join", above=0, most=1
        ),
        "full_batch": Option(256, "sequences beyond which company saves nothing worth waiting for", least=1),
        "max_in_flight": Option(256, "calls at once on each engine", least=1),
        "itl_seconds": Option(
            0.0, "mean gap between tokens up to which an engine is given more calls; 0: `caps.itl_seconds_p95`", least=0
        ),
        "spread_from": Option(
            0.15, "of several engines, one is given more until company lengthens its steps by this share", least=0
        ),
        "keys_apart_seconds": Option(
            APART_SECONDS, "of work by which a key may be ahead of its share of an engine that others wait for", above=0
        ),
        "cap_share": Option(0.2, "of the tightest workflow's slack, offered to the cap controller", least=0, most=1),
        "engine_priority": Option(
            False, "tell vLLM the order, by its `priority`; it must run with --scheduling-policy priority"
        ),
    }

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.margin = margin_for(options["misses_share"])
        self.rules = Rules(
            cover_share=options["cover_share"],
            full_batch=float(options["full_batch"]),
            in_flight=options["max_in_flight"],
            spread_from=options["spread_from"],
        )
        self.itl_seconds: float = options["itl_seconds"]
        self.apart_seconds: float = options["keys_apart_seconds"]
        self.cap_share: float = options["cap_share"]
        self.slacks: dict[str, CapSlack] = {}
        self.engine_priority: bool = options["engine_priority"]
        self.rooms: dict[str, Room] = {}
        self._room_of: dict[CallState, Room] = {}
        self._flows: dict[tuple[str, object], Flow] = {}
        self._sweep_at = FLOWS_SWEPT
        self._chosen_at, self._chosen = float("-inf"), 0
        self._fresh: dict[CallState, None] = {}
        """Came since it was decided last what is held."""

    def begin(self, view: View, now: float) -> None:
        """Take over what is held and what runs."""
        self.view = view
        self.itl_seconds = self.itl_seconds or view.caps.rules.itl_seconds_p95 or float("inf")
        self._costs_at = self._looked_at = now
        self._parking_seen = view.parking.version
        self._learned = view.workflows.forecasts.durations
        if view.engines:
            self._isolated(next(iter(view.engines)))
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            self.arrived(call, now)
            if call.engine is not None and (room := self._room_of.get(call)) is not None:
                room.sent(call, now)

    def end(self, now: float) -> None:
        """Durations are again those of the present load."""
        self.view.workflows.forecasts.durations = self._learned

    def validate(self) -> None:
        """Every call is in one room, and the rooms are whole. AssertionError otherwise."""
        for room in self.rooms.values():
            room.validate()
        assert self._room_of.keys() == {call for room in self.rooms.values() for call in room.flow_of}

    # --- a call's life ---

    def arrived(self, call: CallState, now: float) -> None:
        """It is held until its room says otherwise."""
        workflow = call.node.workflow if call.node is not None else None
        room = self._room(call, call if workflow is None else workflow, now)
        if room is None:
            return
        flow = self._flow(room, call, workflow)
        flow.deadline = deadline_of(call, workflow, self.view, now)
        flow.people = flow.deadline == AT_ONCE and is_for_people(call, workflow)
        self._room_of[call] = room
        if call.engine is None:
            self._fresh[call] = None
        forecasts = self.view.workflows.forecasts
        first = not flow.left_steps
        room.take(call, flow, work_of_call(call, forecasts, room.costs), forecasts, now)
        if first:
            self.slacks[room.name].came(flow, room.costs.step_seconds, now)

    def _flow(self, room: Room, call: CallState, workflow: Workflow | None) -> Flow:
        key = room.name, call if workflow is None else workflow
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(key, workflow)
            if len(self._flows) > self._sweep_at:
                self._sweep()
        return flow

    def _sweep(self) -> None:
        """Workflows whose end nobody told: their clients left, or they were idle for too long."""
        for key, flow in list(self._flows.items()):
            if not flow.present and flow.workflow is not None and flow.workflow.closed_at is not None:
                flow.urgent = False
                del self._flows[key]
        self._sweep_at = FLOWS_SWEPT + 2 * len(self._flows)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """Its choice was carried out."""
        self._fresh.pop(call, None)
        self._room_of[call].sent(call, now)

    def ended(self, call: CallState, now: float) -> None:
        """It is over, or its attempt failed."""
        self._fresh.pop(call, None)
        room = self._room_of.pop(call, None)
        if room is None:
            return
        flow = room.ended(call, now)
        if now - self._looked_at > LOOK_SECONDS and self.view.caps.acts_on(room.name):  # nothing may be held for long
            self._look_at_caps(now)
        if flow.present:
            return
        workflow = flow.workflow
        if workflow is None or workflow.closed_at is not None or not workflow.graph.unfinished:
            self._flows.pop(flow.key, None)
            flow.urgent = False
            if flow.deadline > AT_ONCE:
                (self.margin.missed if now > flow.deadline else self.margin.kept)()

    # --- engines ---

    def _room(self, call: CallState, key: object, now: float) -> Room | None:
        """Of the engine where the call will run: where its workflow is, else where it lengthens nobody's steps by much,
        the first in the order of names that is so; else the one with the least work. None: no engine can take it."""
        engines = [engine for engine in self.view.engines.values() if engine.usable]
        fit = awake_first(fit_for(call, engines)) if engines else []
        if not fit:
            return None
        rooms = [self._room_named(engine.name, now) for engine in fit]
        if len(rooms) == 1 and not self.view.parking.asleep:
            return rooms[0]
        for room in rooms:
            if (flow := self._flows.get((room.name, key))) is not None and (flow.present or flow.workflow is not None):
                return room
        for room, engine in zip(rooms, fit, strict=True):
            if room.load() < self.rules.spread_from and self._takes(engine, now):
                return room
        self.view.parking.wish(call.arrived.model)
        return min(rooms, key=lambda room: room.load())

    def _room_named(self, name: str, now: float) -> Room:
        room = self.rooms.get(name)
        if room is None:
            turns = Turns(self.view.quotas.weight_of, self.apart_seconds)
            room = self.rooms[name] = Room(name, self._costs(name), self.rules, self.margin, now, turns)
            if len(self.rooms) == 1:
                self._isolated(name)
        return room

    def _isolated(self, name: str) -> None:
        """From now on durations are those of calls that are alone on this engine."""
        asked = partial(self._costs, name)
        self.view.workflows.forecasts.durations = IsolatedDurations(asked, self._learned)

    def _costs(self, name: str) -> StepCosts:
        desk = self.view.energy.engines.get(name)
        slower = self.slacks.setdefault(name, CapSlack()).plan(name, desk, self.view.caps)
        learned = self._learned.coefficients() if isinstance(self._learned, LearnedDurations) else LEARNED_UNSEEN
        return costs_of(desk, learned, slower)

    def _refresh_costs(self, now: float) -> None:
        self._costs_at = now
        for name, room in self.rooms.items():
            room.stepping.costs = self._costs(name)
            room.changed = room.came = True
        if self.rooms:
            self._isolated(next(iter(self.rooms)))

    def _look_at_caps(self, now: float) -> None:
        """What engines must be able to do is said often: who is behind has seconds left."""
        self._looked_at = now
        if refresh := now - self._costs_at > COSTS_SECONDS:
            self._refresh_costs(now)
        for name, room in self.rooms.items():
            if refresh or self.view.caps.acts_on(name):
                self.slacks[name].offer(room, self.cap_share, self.margin.learned, now, self.view.caps)
        self.margin.reserve = max((slack.reserve for slack in self.slacks.values()), default=0.0)

    def _takes(self, engine: EngineState, now: float) -> bool:
        return engine.in_flight < self.rules.in_flight and engine.has_room(now)

    def holds_for(self, engine: str) -> bool:
        """Whether calls are held in its room."""
        room = self.rooms.get(engine)
        return room is not None and room.held > 0

    def _moves(self, now: float) -> None:
        """Engines went to sleep or woke up: what is held for one that sleeps, or is full, may go to another one."""
        self._parking_seen = self.view.parking.version
        for name, room in list(self.rooms.items()):
            engine = self.view.engines.get(name)
            if room.held and engine is not None and not self._takes(engine, now):
                self._move_from(room, now)

    def _move_from(self, room: Room, now: float) -> None:
        """Its engine is gone or down: what is held for it is held for others."""
        for call, flow in room.evacuate():
            self._room_of.pop(call, None)
            if not flow.present and self._flows.get(flow.key) is flow:
                del self._flows[flow.key]  # elsewhere it begins anew
            self.arrived(call, now)

    # --- decisions ---

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """What goes now, else when to look again."""
        if now - self._looked_at > LOOK_SECONDS:
            self._look_at_caps(now)
        if now != self._chosen_at:
            self._chosen_at, self._chosen = now, 0
        if self.view.parking.version != self._parking_seen:
            self._moves(now)
        wake = float("inf")
        for name, room in list(self.rooms.items()):
            if not room.held:
                continue
            engine = self.view.engines.get(name)
            if engine is None or not engine.usable:
                self._move_from(room, now)
                continue
            first = room.queue.first(room.queued)
            if first is None or room.decided_at != now:  # what came since may go before what waits for its turn
                wake = min(wake, room.decide(now))
                first = room.queue.first(room.queued)
            if first is not None and self._takes_more(engine, room, first.call, now):
                if self._chosen == CHOICES_AT_ONCE:
                    return now
                self._chosen += 1
                order, _, call, rule = first
                priority = int(1e3 * order) if self.engine_priority else None
                return Choice(call, engine, priority, why_sent(room, call, rule, now))
        self._tell_held(now)
        return wake if wake < float("inf") else None

    def _takes_more(self, engine: EngineState, room: Room, call: CallState, now: float) -> bool:
        """Up to the ITL target each more makes a token's joules fewer: the steps' fixed cost has more to share it."""
        return self._takes(engine, now) and room.stepping.keeps(room.flow_of[call].held[call], self.itl_seconds)

    def _tell_held(self, now: float) -> None:
        """What came and is not sent now is held: the log of decisions is told why."""
        for call in self._fresh:
            room = self._room_of.get(call)
            if room is not None and call not in room.queued:
                self.view.decisions.held(call, why_held(room, call, now), now)
        self._fresh.clear()
