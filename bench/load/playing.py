"""What came of one play, on a real engine or on the twin?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from workloads.played import PlayedWorkflow

COMPONENTS = ("gpu", "cpu", "dram")


class Note(NamedTuple):
    """What is to be known beside the numbers; codes stand in docs/results-format.md."""

    code: str
    text: str


class EnergyAbout(NamedTuple):
    """Where joules come from: `measured`, `modelled`, `simulated` or `unavailable`, of each component."""

    gpu: str
    cpu: str
    dram: str
    detail: str

    def document(self) -> dict[str, Any]:
        """For the metadata."""
        return {"source": self.gpu, **self._asdict()}


class Playing(NamedTuple):
    """Times are seconds since the play began."""

    workflows: list[PlayedWorkflow]
    windows: list[dict[str, Any]]
    """As rows of a result, without `repeat`."""
    complete: bool
    idle_watts: float | None
    energy: EnergyAbout
    started_unix_seconds: float
    notes: tuple[Note, ...] = ()
