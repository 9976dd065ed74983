"""What does the twin make of calls that come to it when they came to a real engine? Nobody decides anything here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.load.direct import ENGINE, Direct
from bench.load.playing import Playing
from bench.load.rows import rows_of
from bench.load.virtual import ENERGY, NOTES
from bench.load.virtual_meter import VirtualMeter
from bench.twin.play import Player
from workloads.played import PlayedCall, PlayedWorkflow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.twin.virtual import Answer
    from bench.load.columns import Kind
    from bench.load.load import Load
    from workloads.shapes import CallShape, WorkflowShape

Sent = tuple[str, str]
"""(workflow, node)"""


class _Resender(Player):
    """Sends each call at its time, whatever has been answered by then."""

    def __init__(self, world: World, times: Mapping[Sent, float]) -> None:
        super().__init__(world)
        self._times = times
        self._left = len(times)
        self.answers: dict[Sent, Answer] = {}

    def begin(self, load: Load, meter: VirtualMeter) -> None:
        """Ask for all beginnings. The meter ends with the last answer."""
        self._meter = meter
        for arrival in load.arrivals:
            for call in arrival.workflow.calls:
                at = self._times.get((arrival.workflow.id, call.node))
                if at is not None:
                    self.world.time.at(at, lambda workflow=arrival.workflow, call=call: self._send(workflow, call))  # type: ignore[misc]

    def _send(self, workflow: WorkflowShape, call: CallShape) -> None:
        call_id = f"{workflow.id}/{call.node}"
        request = self.request(call_id, workflow, call)
        sent = workflow.id, call.node
        self.world.call(self.arrived(call_id, workflow, call), request, lambda answer: self._over(sent, answer))

    def arrived(self, call_id: str, workflow: WorkflowShape, call: CallShape) -> Any:
        """Each a workflow of its own: the scheduler passes on what it is given."""
        return super().arrived(call_id, workflow._replace(id=call_id), call._replace(after=()))

    def _over(self, sent: Sent, answer: Answer) -> None:
        self.answers[sent] = answer
        self._left -= 1
        if not self._left:
            self._meter.stop()


def resent(load: Load, repeat: int, times: Mapping[Sent, float], calibration: str) -> dict[Kind, list[dict[str, Any]]]:
    """Rows of a result. `times`: when each call came to its engine, seconds since the play began; calls that are not in
    it are not made."""
    engine = TwinEngine(calibrations.load(calibration))
    world = World(Direct(), {ENGINE: engine})
    player = _Resender(world, times)
    meter = VirtualMeter(world, engine, ENGINE, told=False)
    meter.start()
    player.begin(load, meter)
    world.time.run()
    workflows = [
        PlayedWorkflow(
            arrival.workflow, arrival.seconds, max(call.answered_at for call in calls), calls, arrival.workflow.id
        )
        for arrival in load.arrivals
        if (calls := _calls(arrival.workflow, times, player.answers))
    ]
    playing = Playing(workflows, meter.windows, True, engine.costs.idle_watts, ENERGY, time.time(), NOTES)
    return rows_of(load, repeat, playing)


def _calls(
    workflow: WorkflowShape, times: Mapping[Sent, float], answers: Mapping[Sent, Answer]
) -> tuple[PlayedCall, ...]:
    found = []
    for call in workflow.calls:
        if (answer := answers.get((workflow.id, call.node))) is None:
            continue
        at, prompt, output = times[workflow.id, call.node], call.prompt_tokens, call.output_tokens
        end, first = answer.finished_at, answer.first_token_at
        found.append(PlayedCall(call.node, at, at, end, 200, "", prompt, answer.cached_tokens, output, first))
    return tuple(found)
