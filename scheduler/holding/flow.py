"""What is still to be done of one workflow on one engine, and by when?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.holding.work import CallWork, work_of_call, work_of_node

if TYPE_CHECKING:
    from scheduler.holding.costs import StepCosts
    from scheduler.policies.base import View
    from scheduler.state import CallState
    from scheduler.workflow.forecasts import Forecasts
    from scheduler.workflow.workflow import Workflow

NODES_LOOKED_AT = 256
"""Of a declared workflow; what the others cost is taken to be alike."""
SHAPES_LEAST = 4
"""A workflow that was not declared is held when so many runs of its kind have said what usually comes behind."""
PATIENCE_SECONDS = 1.0
"""A call is sent so long before the queue would refuse it."""
AT_ONCE = float("-inf")
"""The deadline of what is not to be held at all."""


class Flow:
    """A workflow, or a call of none, as long as it has calls that are held or run. Seconds of the engine's time."""

    __slots__ = (
        "begun_sums", "deadline", "ends_at", "held", "held_tail", "key", "left_at",
        "left_marginal", "left_steps", "people", "prefill", "present_sums", "prompts", "run_steps",
        "run_tail", "running", "tight_key", "urgent", "version", "workflow",
    )  # fmt: skip

    def __init__(self, key: tuple[str, object], workflow: Workflow | None) -> None:
        self.key = key
        self.workflow = workflow
        self.deadline = AT_ONCE
        self.people = False
        """Somebody waits for each of its answers."""
        self.held: dict[CallState, CallWork] = {}
        self.running = 0
        self.held_tail = 0.0
        """Longest way from a held call to the workflow's end, alone on the engine."""
        self.run_tail = 0.0
        """The same from what runs, when the engine had done `run_steps`."""
        self.run_steps = 0.0
        self.prefill = 0.0
        """Of the held calls' prompts."""
        self.left_marginal = 0.0
        """What all of its unfinished calls add to steps that are there anyway."""
        self.prompts = 0.0
        """Of that, prompts, as it looked when it came."""
        self.left_steps = 0.0
        """Output tokens of all its unfinished calls."""
        self.urgent = False
        """It can wait no longer: what comes of it is sent at once."""
        self.ends_at = 0.0
        """When it ends, as it looked last; of use while it is urgent."""
        self.tight_key = 0.0
        """Compared to the room's count of work that joined, it says how much more this one can bear."""
        self.left_at = 0.0
        """Since when it has no calls here."""
        self.version = 0
        self.present_sums: tuple[int, float, float] | None = None
        self.begun_sums: tuple[int, float, float] | None = None

    @property
    def present(self) -> bool:
        """It has calls that are held or run."""
        return bool(self.held) or self.running > 0

    def tail(self, steps: float, step_seconds: float) -> float:
        """Longest way to its end, alone on the engine, which has done `steps`."""
        if not self.running:
            return self.held_tail
        return max(self.held_tail, self.run_tail - (steps - self.run_steps) * step_seconds, 1e-3)

    def fixed_share(self, step_seconds: float) -> float:
        """Of its way alone: the steps' own time, which company does not lengthen."""
        fixed = step_seconds * self.left_steps
        return fixed / (fixed + self.left_marginal) if fixed > 0.0 else 1.0

    def take(self, call: CallState, work: CallWork, tail: float) -> None:
        """A call of it is held."""
        self.held[call] = work
        self.held_tail = max(self.held_tail, tail)
        self.prefill += work.prefill_seconds

    def let_go(self, call: CallState) -> CallWork:
        """It is held no longer."""
        work = self.held.pop(call)
        if self.held:
            self.prefill = max(0.0, self.prefill - work.prefill_seconds)
        else:
            self.prefill = self.held_tail = 0.0
        return work

    def prompted(self, work: CallWork) -> None:
        """Its prompt is the engine's now, which has it among those that run."""
        self.left_marginal = max(0.0, self.left_marginal - work.prefill_seconds)

    def done(self, work: CallWork, *, ran: bool) -> None:
        """A call of it is over. `ran`: its prompt counts no more."""
        left = work.steps * work.token_seconds if ran else work.marginal_seconds
        self.left_marginal = max(0.0, self.left_marginal - left)
        self.left_steps = max(0.0, self.left_steps - work.steps)

    def expect(self, call: CallState, work: CallWork, forecasts: Forecasts, costs: StepCosts) -> None:
        """How much there is to do, seen from a call that came: of all nodes that are known, else of this call and what
        the workflow's template has behind it."""
        workflow = self.workflow
        if workflow is not None and workflow.origin == "declared":
            if not self.left_steps:
                self._expect_all(workflow, forecasts, costs)
            elif call.attempts:  # `done` took it off when its attempt failed
                self.left_marginal += work.marginal_seconds
                self.left_steps += work.steps
            return
        self.left_marginal += work.marginal_seconds
        self.left_steps += work.steps
        self.prompts += work.prefill_seconds
        node = call.node
        if node is not None and node.remainder_seconds:
            each = costs.step_seconds + work.token_seconds
            steps = node.remainder_seconds / (each + work.prefill_seconds / work.steps)
            self.left_steps = max(self.left_steps, work.steps + steps)
            self.left_marginal = max(self.left_marginal, (1.0 + steps / work.steps) * work.marginal_seconds)

    def _expect_all(self, workflow: Workflow, forecasts: Forecasts, costs: StepCosts) -> None:
        looked_at = unfinished = 0
        marginal = steps = prompts = 0.0
        for node in workflow.graph.nodes.values():
            if node.over:
                continue
            work = work_of_node(node, forecasts, costs)
            marginal += work.marginal_seconds
            steps += work.steps
            prompts += work.prefill_seconds
            looked_at += 1
            if looked_at == NODES_LOOKED_AT:
                unfinished = workflow.graph.unfinished
                break
        factor = max(1.0, unfinished / max(looked_at, 1))
        self.left_marginal, self.left_steps = factor * marginal, factor * steps
        self.prompts = factor * prompts


def tail_of(call: CallState, work: CallWork, costs: StepCosts) -> float:
    """From the call's start to the workflow's end, alone on the engine, if lengths take their upper quantiles."""
    if call.node is not None:
        return call.node.tail_upper_seconds
    return work.prefill_seconds + work.steps * (costs.step_seconds + work.token_seconds)


def deadline_of(call: CallState, workflow: Workflow | None, view: View, now: float) -> float:
    """When the call's workflow is to have ended, as it stands now; AT_ONCE: the call is not to be held."""
    if workflow is None or (workflow.deadline_at is None and workflow.effective_class == "interactive"):
        return AT_ONCE
    if workflow.origin != "declared" and not workflow.closing:
        template = view.workflows.templates.of(workflow)
        if template is None or len(template.shapes) < SHAPES_LEAST:
            return AT_ONCE  # nobody knows how much of it is still to come
    return min(workflow.end_allowed(now), view.patience.ends_at(call) - PATIENCE_SECONDS)


def is_for_people(call: CallState, workflow: Workflow | None) -> bool:
    """Of what is not to be held: not what only asks the engine something, as which models it has, and not a workflow
    of which nobody knows yet how much is still to come."""
    if workflow is None:
        return call.arrived.model is not None
    return workflow.effective_class == "interactive"


__all__ = ["AT_ONCE", "Flow", "deadline_of", "is_for_people", "tail_of", "work_of_call"]
