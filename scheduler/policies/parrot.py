"""`parrot`: the application first, as in Parrot (OSDI'24): whole workflows in the order in which they came.

A call goes before those of later workflows wherever it stands in its own, so that a join does not queue behind other
people's maps; within a workflow the topologically first is first, and a task group goes out in a row, to one engine.
Calls whose leading text is equal go to the engine that has it, unless that is much fuller than another. An engine that
has a latency-oriented call takes no more than `latency_in_flight`; the objective is deduced from the graph. Groups that
fit nowhere do not wait: as many of them go as there is room.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from scheduler.policies.base import Choice, Policy, fit_for, with_room
from scheduler.policies.options import Option
from scheduler.policies.queue import OLDEST_EVERY, HeldQueue

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from scheduler.policies.base import View
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.node import Node

REMEMBERED_MAX = 16_384
"""Workflows, and leading texts and groups with their engines: of each kind."""


class Parrot(Policy):
    """Workflows first come first served; engines by what they hold already."""

    name = "parrot"
    uses_workflows = True
    options: ClassVar[Mapping[str, Option]] = {
        "max_in_flight": Option(256, "calls at once on each engine", least=1),
        "latency_in_flight": Option(256, "calls at once on an engine that has a latency-oriented one", least=1),
        "affinity_calls": Option(32, "an engine that has the leading text may have so many calls more", least=0),
        "oldest_every": OLDEST_EVERY,
    }

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.max_in_flight: int = options["max_in_flight"]
        self.latency_in_flight: int = options["latency_in_flight"]
        self.affinity_calls: int = options["affinity_calls"]
        self.queue = HeldQueue(options["oldest_every"])
        self.numbers: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Workflows → their order of coming."""
        self.places: OrderedDict[Hashable, str] = OrderedDict()
        """Leading texts and task groups → the engine that was given one last."""
        self.number_of: dict[CallState, int] = {}
        self.urgent: dict[str, dict[CallState, None]] = {}
        """Latency-oriented calls by engine."""
        self._numbers = 0

    def begin(self, view: View, now: float) -> None:
        """What is held is queued, in the order in which it came."""
        self.view = view
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            if call.engine is None:
                self.arrived(call, now)
            elif self._latency(call):
                self.urgent.setdefault(call.engine, {})[call] = None

    def arrived(self, call: CallState, now: float) -> None:
        """In the order of its workflow, and there of its node."""
        node = call.node
        number = self._number(node)
        self.number_of[call] = number
        self.queue.push(call, (number, 0 if node is None else node.level), self.view.ready)

    def ended(self, call: CallState, now: float) -> None:
        """It takes no place any more."""
        self.number_of.pop(call, None)
        if call.engine is not None and (urgent := self.urgent.get(call.engine)) is not None:
            urgent.pop(call, None)
            if not urgent:
                del self.urgent[call.engine]

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | None:
        """The first call of the first workflow; vLLM's own queue is told the workflow's order."""
        room = with_room(engines, now, self.max_in_flight)
        if self.urgent and self.latency_in_flight < self.max_in_flight:
            room = [e for e in room if e.name not in self.urgent or e.in_flight < self.latency_in_flight]
        if not room or (call := self.queue.first(ready, room)) is None:
            return None
        engine = room[0] if len(engines) == 1 else self._place(call, fit_for(call, room))
        return Choice(call, engine, self.number_of[call])

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """What begins like it, or belongs to its group, is to follow it."""
        self.queue.sent()
        if self._latency(call):
            self.urgent.setdefault(engine.name, {})[call] = None
        if call.node is not None and len(self.view.engines) > 1:
            for name in self._kin(call.node):
                self.places[name] = engine.name
                self.places.move_to_end(name)
            while len(self.places) > REMEMBERED_MAX:
                self.places.popitem(last=False)

    def _latency(self, call: CallState) -> bool:
        return call.node is None or self.view.workflows.objective(call.node) == "latency"

    def _place(self, call: CallState, fit: Sequence[EngineState]) -> EngineState:
        """Where its leading text or its group is, the longest text first; else where there is least to do."""
        emptiest = min(fit, key=lambda engine: (engine.in_flight, engine.name))
        if call.node is None:
            return emptiest
        for name in self._kin(call.node):
            where = self.places.get(name)
            for engine in fit:
                if engine.name == where and engine.in_flight <= emptiest.in_flight + self.affinity_calls:
                    return engine
        return emptiest

    def _kin(self, node: Node) -> list[Hashable]:
        """What draws it to an engine: its leading text, from the longest that others have too; then its groups."""
        key, workflows = node.workflow.key, self.view.workflows
        place, _ = workflows.prefix_company(node)
        texts = node.prefix if place < 0 else node.prefix[: place + 1]
        kin: list[Hashable] = [(key, text) for text in reversed(texts)]
        kin += [(key, node.workflow.id, group.consumer.name) for group in workflows.task_groups(node)]
        return kin

    def _number(self, node: Node | None) -> int:
        if node is not None:
            name = (node.workflow.key, node.workflow.id)
            if (known := self.numbers.get(name)) is not None:
                self.numbers.move_to_end(name)
                return known
        self._numbers += 1
        if node is not None:
            self.numbers[name] = self._numbers
            if len(self.numbers) > REMEMBERED_MAX:
                self.numbers.popitem(last=False)
        return self._numbers
