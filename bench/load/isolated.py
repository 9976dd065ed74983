"""How long does a workflow take with the engine to itself? Played alone on the twin, what all share in its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin import calibration as calibrations
from backends.twin.engine import TwinEngine
from backends.twin.virtual import World
from bench.load.direct import ENGINE, Direct
from bench.twin.play import Player

if TYPE_CHECKING:
    from workloads.shapes import WorkflowShape


class Alone:
    """An engine on which one workflow runs at a time."""

    def __init__(self, calibration: str) -> None:
        self._player = Player(World(Direct(), {ENGINE: TwinEngine(calibrations.load(calibration))}))
        self._known: set[str] = set()

    def seconds(self, workflow: WorkflowShape) -> float:
        """From the first call to the last answer. The first of a kind runs twice: its shared prefixes were not
        cached."""
        player = self._player
        for name in ("warm", "timed") if workflow.kind not in self._known else ("timed",):
            player.start(workflow._replace(id=f"{workflow.id} {name}"))
            player.world.time.run()
        self._known.add(workflow.kind)
        return player.played.pop().seconds
