"""What came of a block? Sums, times and joules of one arm in one block, closed and never changed again."""

from __future__ import annotations

from heapq import heappush, heapreplace
from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.experiments.agreement import Agreement
from scheduler.experiments.chance import share_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.experiments.schedule import Block

TIMES_MAX = 2000
"""Workflow times kept of a block and arm; of more, those whose ids have the lowest hashes: a fair sample."""
CLASSES_MAX = 16
COVERED_LEAST = 0.98
"""Share of a block's measured seconds that energy windows must cover; with less the block's joules are unavailable."""
COMPONENTS = ("gpu", "cpu", "dram")


class WorkflowOutcome(NamedTuple):
    """A workflow is over."""

    workflow_id: str
    seconds: float
    """From its first call's arrival to its last answer."""
    ended_at: float
    workflow_class: str = "standard"
    failed: bool = False
    deadline_missed: bool | None = None
    """None: it had no deadline."""
    prompt_tokens: int = 0
    output_tokens: int = 0


class BlockRow(NamedTuple):
    """One arm in one block. `began`, `timed`, times and shares are of workflows that began in the measured part;
    `ended` and tokens of those of the arm that ended in it; joules are the engines' in it."""

    number: int
    pair: int
    arm: int
    start: float
    measured_from: float
    end: float
    began: int
    timed: int
    """Ended, or still running when the row was closed; the latter with their age for a time (`unfinished`)."""
    unfinished: int
    seconds: float
    """Sum of the times."""
    failed: int
    with_deadline: int
    missed: int
    ended: int
    prompt_tokens: int
    output_tokens: int
    offered_tokens: int
    """Prompt and output tokens of the workflows that began."""
    gpu_joules: float | None
    cpu_joules: float | None
    dram_joules: float | None
    energy_source: str
    times: Mapping[str, tuple[float, ...]]
    """Seconds of workflows by class."""
    marks: tuple[str, ...] = ()
    """Why it is not analysed; empty: it is."""
    client_faults: int = 0
    """Workflows that began and had a request that an engine refused as such (4xx): neither timed nor failed."""
    shadow: Agreement | None = None
    """`shadow`: of the decisions of this block."""

    @property
    def measured_seconds(self) -> float:
        """How long it counts."""
        return self.end - self.measured_from

    @property
    def workflow_seconds(self) -> tuple[float, ...]:
        """Of all classes."""
        return tuple(value for values in self.times.values() for value in values)

    def as_json(self) -> dict[str, Any]:
        """For a line of a file."""
        times = {name: list(values) for name, values in self.times.items()}
        return {
            **self._asdict(),
            "times": times,
            "marks": list(self.marks),
            "shadow": None if self.shadow is None else self.shadow._asdict(),
        }


def row_of(record: Mapping[str, Any]) -> BlockRow:
    """What `as_json` wrote. TypeError or KeyError for anything else."""
    times = {str(name): tuple(map(float, values)) for name, values in record["times"].items()}
    shadow = record.get("shadow")
    agreement = None if shadow is None else Agreement(**shadow)
    return BlockRow(**{**record, "times": times, "marks": tuple(record["marks"]), "shadow": agreement})


class OpenRow:
    """A block and arm under way."""

    def __init__(self, block: Block, arm: int) -> None:
        self.block = block
        self.arm = arm
        self.began = self.timed = self.unfinished = self.failed = self.with_deadline = self.missed = self.ended = 0
        self.client_faults = 0
        self.shadow = Agreement()
        self.prompt_tokens = self.output_tokens = self.offered_tokens = 0
        self.seconds = 0.0
        self.marks: dict[str, None] = {}
        self._times: list[tuple[float, str, float]] = []
        """(minus the hash, class, seconds): a heap whose first has the highest hash."""
        self._joules = dict.fromkeys(COMPONENTS, 0.0)
        self._covered = dict.fromkeys(COMPONENTS, 0.0)
        self._sources: dict[str, None] = {}

    def time(self, outcome: WorkflowOutcome, *, unfinished: bool = False) -> None:
        """A workflow that began in the measured part is over, or is not and the row is closed."""
        self.timed += 1
        self.unfinished += unfinished
        self.seconds += outcome.seconds
        self.failed += outcome.failed
        self.offered_tokens += outcome.prompt_tokens + outcome.output_tokens
        if outcome.deadline_missed is not None:
            self.with_deadline += 1
            self.missed += outcome.deadline_missed
        entry = (-share_of("sample", outcome.workflow_id), outcome.workflow_class, outcome.seconds)
        if len(self._times) < TIMES_MAX:
            heappush(self._times, entry)
        elif entry > self._times[0]:
            heapreplace(self._times, entry)

    def end(self, outcome: WorkflowOutcome) -> None:
        """A workflow of the arm ended in the measured part."""
        self.ended += not outcome.failed
        self.prompt_tokens += outcome.prompt_tokens
        self.output_tokens += outcome.output_tokens

    def energy(self, start: float, end: float, joules: tuple[float | None, ...], source: str) -> None:
        """A window of the engines' energy; what overlaps the measured part is taken in proportion."""
        overlap = min(end, self.block.end) - max(start, self.block.measured_from)
        if overlap <= 0:
            return
        share = overlap / (end - start)
        self._sources[source] = None
        for name, value in zip(COMPONENTS, joules, strict=True):
            if value is not None:
                self._joules[name] += share * value
                self._covered[name] += overlap

    def joules_of(self, component: str, sides: int) -> float | None:
        """None: unavailable for too much of the block. `sides`: engines whose windows came in, side by side."""
        wanted = COVERED_LEAST * self.block.measured_seconds * sides
        return self._joules[component] if wanted > 0 and self._covered[component] >= wanted else None

    def closed(self, sides: int) -> BlockRow:
        """For good. A block whose GPU energy is not known carries a mark that concerns metrics of energy alone."""
        times: dict[str, list[float]] = {}
        for _, name, seconds in sorted(self._times, reverse=True):
            times.setdefault(name if name in times or len(times) < CLASSES_MAX else "other", []).append(seconds)
        gpu, cpu, dram = (self.joules_of(name, sides) for name in COMPONENTS)
        marks = dict(self.marks)
        if gpu is None:
            marks["energy_unavailable"] = None
        block = self.block
        return BlockRow(
            block.number, block.pair, self.arm, block.start, block.measured_from, block.end, self.began, self.timed,
            self.unfinished, self.seconds, self.failed, self.with_deadline, self.missed, self.ended,
            self.prompt_tokens, self.output_tokens, self.offered_tokens, gpu, cpu, dram,
            "+".join(self._sources) if gpu is not None else "unavailable",
            {name: tuple(values) for name, values in sorted(times.items())}, tuple(marks), self.client_faults,
            self.shadow if self.shadow.decisions else None,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """For a file; what `restored` reads. The times go along: a restart must not hide what a guardrail saw."""
        names = ("began", "timed", "unfinished", "failed", "with_deadline", "missed", "ended", "prompt_tokens",
                 "output_tokens", "offered_tokens", "seconds", "client_faults")  # fmt: skip
        return {
            "number": self.block.number, "arm": self.arm, "sums": {name: getattr(self, name) for name in names},
            "marks": list(self.marks), "times": list(map(list, self._times)), "joules": dict(self._joules),
            "covered": dict(self._covered), "sources": list(self._sources),
            "shadow": list(self.shadow),
        }  # fmt: skip

    @classmethod
    def restored(cls, block: Block, state: Mapping[str, Any]) -> OpenRow:
        """As it was."""
        row = cls(block, int(state["arm"]))
        for name, value in state["sums"].items():
            setattr(row, name, value)
        row.marks = dict.fromkeys(state["marks"])
        row.shadow = Agreement(*state["shadow"])
        row._times = [(float(rank), str(name), float(seconds)) for rank, name, seconds in state["times"]]
        row._joules = {**row._joules, **state["joules"]}
        row._covered = {**row._covered, **state["covered"]}
        row._sources = dict.fromkeys(state["sources"])
        return row
