"""A policy of your own: the workflow that was left alone for longest goes first. See docs/writing-a-policy.md."""

from __future__ import annotations

from scheduler.decisions import Why
from scheduler.policies.base import Choice, Policy, fit_for, with_room
from scheduler.policies.options import Option


class LongestWait(Policy):
    """Turns by workflow: whose last call was sent longest ago is next."""

    name = "longest-wait"
    uses_workflows = True
    options = {"max_in_flight": Option(32, "calls at once on each engine", least=1)}

    def __init__(self, options):
        self.max_in_flight = options["max_in_flight"]
        self.served_at = {}  # workflow → when a call of it was sent last

    def next(self, ready, engines, now):
        room = with_room(engines, now, self.max_in_flight)
        held = [call for call in ready if any(engine.serves(call.arrived.model) for engine in room)]
        if not held:
            return None
        call = min(held, key=lambda call: (self.served_at.get(self.workflow(call), -1.0), call.sequence))
        engine = min(fit_for(call, room), key=lambda engine: (engine.in_flight, engine.name))
        return Choice(call, engine, why=Why("longest_wait"))

    def sent(self, call, engine, now):
        self.served_at[self.workflow(call)] = now

    def ended(self, call, now):
        if call.node is None or not call.node.workflow.live_calls:
            self.served_at.pop(self.workflow(call), None)

    @staticmethod
    def workflow(call):
        return (call.arrived.key, call.arrived.workflow_id or call.arrived.call_id)
