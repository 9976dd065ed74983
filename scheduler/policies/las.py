"""`las`: least attained service first, as Autellix does it for programs of calls: what has had little goes first.

Short workflows overtake long ones without anybody knowing lengths beforehand. Service is counted along the critical
path (Autellix' ATLAS): a call has attained what the longest chain of calls before it took at engines; what runs side by
side does not add up. It is rounded to levels that double, so that workflows alike do not take turns and all end late;
within a level the workflow that came first is first.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from math import frexp
from typing import TYPE_CHECKING, Any, ClassVar

from scheduler.policies.base import Choice, Policy, fit_for, with_room
from scheduler.policies.options import Option
from scheduler.policies.queue import OLDEST_EVERY, HeldQueue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.policies.base import View
    from scheduler.state import CallState, EngineState, ReadyCalls
    from scheduler.workflow.node import Node

FLOWS_MAX = 16_384
"""Workflows remembered; that of which nothing was heard for longest is forgotten, and begins anew."""
LOOKED_AT_MAX = 256
"""Nodes before a call that are looked at."""


class Flow:
    """A workflow: when it came, and what the calls of each of its nodes had attained at their ends."""

    __slots__ = ("after", "most", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.after: dict[str, float] = {}
        self.most = 0.0


class Las(Policy):
    """The held call of least attained service goes to the engine with the fewest calls in flight."""

    name = "las"
    uses_workflows = True
    options: ClassVar[Mapping[str, Option]] = {
        "max_in_flight": Option(256, "calls at once on each engine", least=1),
        "quantum_seconds": Option(
            4.0, "attained service up to which a workflow is new; levels double from there", above=0
        ),
        "oldest_every": OLDEST_EVERY,
    }

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.max_in_flight: int = options["max_in_flight"]
        self.quantum_seconds: float = options["quantum_seconds"]
        self.queue = HeldQueue(options["oldest_every"])
        self.flows: OrderedDict[tuple[str, str], Flow] = OrderedDict()
        self.attained: dict[CallState, float] = {}
        """Of held and running calls, before their own."""
        self._numbers = 0

    def begin(self, view: View, now: float) -> None:
        """What is held is queued; what has run before is not known."""
        self.ready = view.ready
        for call in sorted(view.calls.values(), key=lambda call: call.sequence):
            self.arrived(call, now)

    def arrived(self, call: CallState, now: float) -> None:
        """Its level is that of what stands before it in its workflow."""
        attained, number = 0.0, call.sequence
        if (node := call.node) is not None:
            flow = self._flow(node)
            attained, number = self._before(node, flow), flow.number
        else:
            self._numbers += 1
            number = self._numbers
        self.attained[call] = attained
        if call.engine is None:
            self.queue.push(call, (self._level(attained), number), self.ready)

    def ended(self, call: CallState, now: float) -> None:
        """Its own time at the engine counts for what comes behind it."""
        attained = self.attained.pop(call, None)
        node = call.node
        if attained is None or node is None or call.engine is None or call.sent is None:
            return
        flow = self._flow(node)
        total = attained + (now - call.sent.at)
        flow.after[node.name] = total
        flow.most = max(flow.most, total)
        workflow = node.workflow
        if workflow.closed_at is not None and not workflow.live_calls:
            self.flows.pop((workflow.key, workflow.id), None)

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | None:
        """The call of the lowest level; vLLM's own queue is told the level."""
        room = with_room(engines, now, self.max_in_flight)
        if not room or (call := self.queue.first(ready, room)) is None:
            return None
        engine = room[0]
        if len(room) > 1:
            engine = min(fit_for(call, room), key=lambda engine: (engine.in_flight, engine.name))
        return Choice(call, engine, self._level(self.attained[call]))

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """One turn is over."""
        self.queue.sent()

    def _level(self, attained: float) -> int:
        return max(0, frexp(attained / self.quantum_seconds)[1])

    def _flow(self, node: Node) -> Flow:
        name = (node.workflow.key, node.workflow.id)
        flow = self.flows.get(name)
        if flow is None:
            self._numbers += 1
            flow = self.flows[name] = Flow(self._numbers)
            if len(self.flows) > FLOWS_MAX:
                self.flows.popitem(last=False)
        else:
            self.flows.move_to_end(name)
        return flow

    @staticmethod
    def _before(node: Node, flow: Flow) -> float:
        """The longest chain of calls before the node, in seconds at engines. Tools take no service."""
        dag, after = node.workflow.graph.dag, flow.after
        if not after:
            return 0.0
        most, ways, left = -1.0, [node], LOOKED_AT_MAX
        while ways and left > 0:
            for before in islice(dag.predecessors(ways.pop()), left):
                left -= 1
                if before.tool:
                    ways.append(before)
                most = max(most, after.get(before.name, 0.0))
        if most >= 0.0:
            return most
        return 0.0 if node.declared else flow.most  # of one that says nothing of its place, it may be behind all
