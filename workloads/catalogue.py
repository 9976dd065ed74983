"""Which workload is meant? A kind or the mix, in a preset's size, scaled, with single parameters set; seeded."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from workloads.presets import PRESETS
from workloads.shapes import COMPOSITE, KINDS, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from workloads.shapes import WorkflowShape

MIX = "composite"
NAMES = (*KINDS, MIX)
INPUTS = frozenset(
    (
        "chunk_tokens",
        "instruction_tokens",
        "system_tokens",
        "query_tokens",
        "prompt_tokens",
        "task_tokens",
        "context_tokens",
        "file_tokens",
    )
)
"""Parameters that `input_scale` multiplies: lengths of what callers write."""
OUTPUTS = frozenset(
    ("summary_tokens", "output_tokens", "design_tokens", "code_tokens", "review_tokens", "revision_tokens")
)
"""Parameters that `output_scale` multiplies: lengths of answers, and so of what later prompts quote."""
LARGEST = 1_000_000
SCALES = (0.001, 1000.0)


class WorkloadFault(ValueError):
    """A workload that is not possible. `place`: the member that is wrong."""

    def __init__(self, place: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True)
class Workload:
    """What is played. `parameters`: by name for a kind (`chunk_tokens`), by kind and name for any and for the mix
    (`chain.chunk_tokens`); a value is a whole number or [least, most]. `mix`: shares of kinds, for the mix alone."""

    name: str
    preset: str = "published"
    input_scale: float = 1.0
    output_scale: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """WorkloadFault that says what is wrong and what would be right."""
        _one_of(("name",), self.name, NAMES)
        _one_of(("preset",), self.preset, PRESETS)
        for name, value in (("input_scale", self.input_scale), ("output_scale", self.output_scale)):
            if not SCALES[0] <= value <= SCALES[1]:
                raise WorkloadFault((name,), f"must be from {SCALES[0]:g} to {SCALES[1]:g}, not {value:g}")
        for name, value in self.parameters.items():
            self._split(name)
            _range_of(("parameters", name), value)
        if self.mix and self.name != MIX:
            raise WorkloadFault(("mix",), f"is for {MIX} alone")
        for kind, share in self.mix.items():
            _one_of(("mix", kind), kind, KINDS)
            if not 0 <= share <= LARGEST:
                raise WorkloadFault(("mix", kind), f"must be a share from 0 on, not {share!r}")
        if self.mix and not any(self.mix.values()):
            raise WorkloadFault(("mix",), "has no share above 0")

    def makers(self) -> dict[str, Callable[[str, random.Random], WorkflowShape]]:
        """What makes a workflow of each kind. WorkloadFault."""
        self.check()
        return {kind: partial(KINDS[kind], **self.of(kind)) for kind in KINDS}

    def of(self, kind: str) -> dict[str, Any]:
        """All parameters of a kind, as they will be used."""
        found = {**parameters(kind), **PRESETS[self.preset].get(kind, {})}
        for name, value in found.items():
            scale = self.input_scale if name in INPUTS else self.output_scale if name in OUTPUTS else 1.0
            found[name] = _scaled(value, scale)
        for full, value in self.parameters.items():
            of_kind, name = self._split(full)
            if of_kind == kind:
                found[name] = _like(found[name], _range_of(("parameters", full), value), full)
        return found

    def stream(self, rng: random.Random, prefix: str = "wf") -> Iterator[WorkflowShape]:
        """Workflows without end. WorkloadFault."""
        return stream(self.name, rng, prefix=prefix, makers=self.makers(), mix=self.mix or COMPOSITE)

    def calls_per_workflow(self, sample: int = 500) -> float:
        """Mean number of calls, of a sample with a seed of its own."""
        return sum(len(workflow.calls) for workflow in islice(self.stream(random.Random(0)), sample)) / sample

    def _split(self, full: str) -> tuple[str, str]:
        """(kind, parameter) of a parameter's name. WorkloadFault."""
        kind, dot, name = full.rpartition(".")
        place = ("parameters", full)
        if not dot:
            if self.name == MIX:
                raise WorkloadFault(place, f"of {MIX}, say of which kind, as chain.{full}")
            kind = self.name
        _one_of(place, kind, KINDS)
        if self.name not in (MIX, kind):
            raise WorkloadFault(place, f"is of {kind}, and the workload is {self.name}")
        _one_of(place, name, parameters(kind))
        return kind, name


def parameters(kind: str) -> dict[str, Any]:
    """A kind's parameters with the published values. KeyError."""
    signature = inspect.signature(KINDS[kind])
    return {name: each.default for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY}


def _one_of(place: tuple[str, ...], name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise WorkloadFault(
            place, f"no {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}")
        )


def _range_of(place: tuple[str, ...], value: Any) -> tuple[int, int]:
    low, high = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    if not (type(low) is int and type(high) is int and 1 <= low <= high <= LARGEST):
        raise WorkloadFault(place, f"must be a whole number from 1 to {LARGEST:,} or [least, most], not {value!r}")
    return low, high


def _like(usual: Any, found: tuple[int, int], name: str) -> Any:
    if isinstance(usual, tuple):
        return found
    if found[0] != found[1]:
        raise WorkloadFault(("parameters", name), f"has one length, not a range: {list(found)}")
    return found[0]


def _scaled(value: Any, scale: float) -> Any:
    if scale == 1.0:
        return value
    if isinstance(value, tuple):
        return tuple(max(1, round(each * scale)) for each in value)
    return max(1, round(value * scale))
