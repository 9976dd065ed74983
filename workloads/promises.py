"""What are the users of a workflow promised? Nothing, a time, or so many times what it takes alone; and a class."""

from __future__ import annotations

from dataclasses import dataclass

from workloads.catalogue import WorkloadFault

CLASSES = ("interactive", "standard", "batch")
LARGEST_MS = 1e10


@dataclass(frozen=True, slots=True)
class Promise:
    """`deadline_ms`: the same for all. `stretch`: so many times the workflow's isolated time. At most one of them."""

    deadline_ms: float | None = None
    stretch: float | None = None
    workflow_class: str | None = None

    def check(self) -> None:
        """WorkloadFault that names the member."""
        if self.deadline_ms is not None and self.stretch is not None:
            raise WorkloadFault(("stretch",), "not together with deadline_ms")
        for name, value in (("deadline_ms", self.deadline_ms), ("stretch", self.stretch)):
            if value is not None and not 0 < value <= LARGEST_MS:
                raise WorkloadFault((name,), f"must be above 0 and at most {LARGEST_MS:g}, not {value!r}")
        if self.workflow_class is not None and self.workflow_class not in CLASSES:
            raise WorkloadFault(("class",), f"must be one of {', '.join(CLASSES)}, not {self.workflow_class!r}")

    def deadline_seconds(self, isolated_seconds: float | None) -> float | None:
        """From the intended start; None: none. ValueError if it needs the isolated time and there is none."""
        if self.deadline_ms is not None:
            return self.deadline_ms / 1e3
        if self.stretch is None:
            return None
        if isolated_seconds is None:
            raise ValueError("a deadline as a multiple of isolated time needs the isolated time")
        return self.stretch * isolated_seconds
