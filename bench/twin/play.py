"""Workflows through a scheduler onto simulated engines, in virtual time: clients that follow each graph."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from backends.twin.content import Piece, runs_of_pieces
from backends.twin.request import Request
from scheduler.events import CallArrived

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from backends.twin.virtual import Answer, World
    from workloads.shapes import CallShape, WorkflowShape


class Played(NamedTuple):
    """A workflow that is done."""

    workflow: WorkflowShape
    arrived_at: float
    finished_at: float
    refused: int
    """Calls that the scheduler refused; those behind them were not made."""

    @property
    def seconds(self) -> float:
        """From its arrival to its last answer."""
        return self.finished_at - self.arrived_at


class Player:
    """Sends each call as soon as those it waits for are answered, as a client of the gateway would."""

    def __init__(self, world: World, model: str | None = None) -> None:
        self.world = world
        self.model = model
        blocks = {engine.calibration.engine.block_tokens for engine in world.engines.values()}
        if len(blocks) != 1:
            raise ValueError(f"the engines have blocks of different sizes: {sorted(blocks)}")
        self.block_tokens = blocks.pop()
        self.calls = 0
        self.played: list[Played] = []

    def start(self, workflow: WorkflowShape) -> None:
        """Begin a workflow now."""
        Progress(self, workflow).begin()

    def request(self, call_id: str, workflow: WorkflowShape, call: CallShape) -> Request:
        """What the engine is given."""
        pieces = [Piece(part.text, part.tokens) for part in call.prompt]
        pieces.append(Piece(f"{workflow.id} {call.node}", call.output_tokens))
        return Request(call_id, call.prompt_tokens, call.output_tokens, runs_of_pieces(pieces, self.block_tokens))

    def arrived(self, call_id: str, workflow: WorkflowShape, call: CallShape) -> CallArrived:
        """What the scheduler is told of a call."""
        prompt, output = call.prompt_tokens, call.output_tokens
        return CallArrived(call_id, "-", self.model, workflow.id, prompt, output, call.node, call.after)

    def call_over(self, progress: Progress, call: CallShape, request: Request, ready_at: float, answer: Answer) -> None:
        """For those who want to know each call."""

    def workflow_over(self, progress: Progress) -> None:
        """A workflow is done, or what is left of it will not be made."""
        now = self.world.time.now
        self.played.append(Played(progress.workflow, progress.arrived_at, now, progress.refused))

    def poisson(self, workflows: Iterator[WorkflowShape], rate: float, seconds: float, rng: random.Random) -> None:
        """Begin workflows at random times, `rate` a second, for so long from now."""
        time = self.world.time
        end = time.now + seconds

        def next_one() -> None:
            if time.now >= end:
                return
            self.start(next(workflows))
            time.at(time.now + rng.expovariate(rate), next_one)

        time.at(time.now + rng.expovariate(rate), next_one)


class Progress:
    """One workflow under way."""

    def __init__(self, player: Player, workflow: WorkflowShape) -> None:
        self.player = player
        self.workflow = workflow
        self.arrived_at = player.world.time.now
        self.left = len(workflow.calls)
        self.running = self.refused = 0
        self.waits = {call.node: len(call.after) for call in workflow.calls}
        self.children: dict[str, list[CallShape]] = {}
        for call in workflow.calls:
            for node in call.after:
                self.children.setdefault(node, []).append(call)

    def begin(self) -> None:
        """Make the calls that wait for nothing."""
        for call in self.workflow.calls:
            if not call.after:
                self.ready(call)

    def ready(self, call: CallShape) -> None:
        """All that it waits for is answered."""
        self.running += 1
        if call.pause_seconds > 0:
            time = self.player.world.time
            time.at(time.now + call.pause_seconds, lambda: self.send(call))
        else:
            self.send(call)

    def send(self, call: CallShape) -> None:
        """Make a call now."""
        player, workflow = self.player, self.workflow
        player.calls += 1
        ready_at = player.world.time.now
        call_id = f"{workflow.id}/{call.node}"
        request = player.request(call_id, workflow, call)
        arrived = player.arrived(call_id, workflow, call)
        player.world.call(arrived, request, lambda answer: self.answered(call, request, ready_at, answer))

    def answered(self, call: CallShape, request: Request, ready_at: float, answer: Answer) -> None:
        """A call is over: those that waited for it alone are ready."""
        self.player.call_over(self, call, request, ready_at, answer)
        self.running -= 1
        self.left -= 1
        if answer.reason is not None:
            self.refused += 1
        else:
            for child in self.children.get(call.node, ()):
                self.waits[child.node] -= 1
                if not self.waits[child.node]:
                    self.ready(child)
        if not self.running:
            self.player.workflow_over(self)


def calls_per_workflow(workflows: Iterator[WorkflowShape], sample: int = 500) -> float:
    """Mean number of calls of a stream's workflows."""
    return sum(len(workflow.calls) for workflow in islice(workflows, sample)) / sample
