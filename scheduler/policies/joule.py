"""`joule`: the fewest joules such that every workflow meets its deadline with the asked-for probability.

A step costs an engine about the same whatever it computes, so joules are saved by making fewer of them: what can wait
waits until a workflow can wait no longer (its latest start, computed for the company in which it will run), then goes
along with that one as far as its steps cover it. What has begun is held again between its calls wherever that is free.
Where so many wait that steps are full anyway, they go at once: the fixed cost is shared as well as it can be.
`scheduler.holding` has the parts.
"""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING, ClassVar

from scheduler.holding.costs import costs_of
from scheduler.holding.flow import AT_ONCE, Flow
from scheduler.holding.margin import Margin
from scheduler.holding.room import Room, Rules
from scheduler.holding.work import IsolatedDurations, work_of_call
from scheduler.policies.base import Choice, Policy
from scheduler.workflow.durations import LearnedDurations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.policies.base import View
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.workflow import Workflow

COSTS_SECONDS = 2.0
"""So often the costs of steps are asked for anew."""


class Joule(Policy):
    """Holds and releases by what steps cost."""

    name = "joule"
    uses_workflows = True
    options: ClassVar[dict[str, str]] = {k: k for k in ("margin_pct", "cover_pct", "full", "start_full", "least_pct")}

    def __init__(self, options: Mapping[str, object]) -> None:
        get = lambda name, value: float(options.get(name, value))
        self.margin = Margin(0.005, get("margin_pct", 8) / 100, get("least_pct", 2) / 100, 1.0)
        self.rules = Rules(cover_share=get("cover_pct", 70) / 100, full_batch=get("full", 256), start_full=get("start_full", 2))

    def begin(self, view: View, now: float) -> None:
        """Take over what is held and what runs."""
        self.view = view
        self.rooms: dict[str, Room] = {}
        self.room_of: dict[CallState, Room] = {}
        self.flows: dict[object, Flow] = {}
        self._costs_at = now
        self._learned = view.workflows.forecasts.durations
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            if call.engine is None:
                self.arrived(call, now)

    def _room(self, name: str, now: float) -> Room:
        room = self.rooms.get(name)
        if room is None:
            room = self.rooms[name] = Room(self._costs(name), self.rules, self.margin, now)
            self.view.workflows.forecasts.durations = IsolatedDurations(room.costs)
        return room

    def _costs(self, name: str):
        learned = self._learned.coefficients() if isinstance(self._learned, LearnedDurations) else (0.1, 5e-5, 0.012)
        return costs_of(self.view.energy.engines.get(name), learned)

    # --- a call's life ---

    def arrived(self, call: CallState, now: float) -> None:
        """It is held until its room says otherwise."""
        node = call.node
        workflow = node.workflow if node is not None else None
        key = call if workflow is None else workflow
        flow = self.flows.get(key)
        if flow is None:
            flow = self.flows[key] = Flow(key, workflow)
        flow.deadline = self._deadline(workflow, now)
        room = self._room(next(iter(self.view.engines)), now)
        self.room_of[call] = room
        forecasts = self.view.workflows.forecasts
        room.take(call, flow, work_of_call(call, forecasts, room.costs), forecasts, now)

    def _deadline(self, workflow: Workflow | None, now: float) -> float:
        if workflow is None:
            return AT_ONCE
        if workflow.deadline_at is None and workflow.effective_class == "interactive":
            return AT_ONCE
        return workflow.end_allowed(now)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """Its choice was carried out."""
        self.room_of[call].sent(call, now)

    def ended(self, call: CallState, now: float) -> None:
        """It is over."""
        room = self.room_of.pop(call, None)
        if room is None:
            return
        flow = room.ended(call, now)
        if flow.present:
            return
        workflow = flow.workflow
        if workflow is None or workflow.closed_at is not None or not workflow.graph.unfinished:
            self.flows.pop(flow.key, None)
            flow.urgent = False
            if flow.deadline > AT_ONCE:
                (self.margin.missed if now > flow.deadline else self.margin.kept)()

    # --- decisions ---

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """What goes now, else when to look again."""
        if now - self._costs_at > COSTS_SECONDS:
            self._costs_at = now
            for name, room in self.rooms.items():
                room.stepping.costs = self._costs(name)
                self.view.workflows.forecasts.durations.costs = room.costs
        wake = float("inf")
        for engine in engines:
            room = self.rooms.get(engine.name)
            if room is None or not room.held:
                continue
            if not room.queue:
                wake = min(wake, room.decide(now))
            queue = room.queue
            while queue and queue[0].call not in room.queued:
                heappop(queue)
            if queue and engine.in_flight < room.rules.in_flight and engine.has_room(now):
                sent = heappop(queue)
                return Choice(sent.call, engine)
        return wake if wake < float("inf") else None
