"""How does a configuration's result come about? Repeat by repeat, each kept on the disk when it is there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.figures import figures_of, summary
from bench.load.load import WARM_UP, load_of
from bench.load.results import SUFFIX, Writer
from bench.load.rows import rows_of
from bench.load.sharing import SHARED_LEAST
from bench.load.spec import AS_IS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.load.columns import Kind
    from bench.load.load import Load
    from bench.load.playing import Note, Playing
    from bench.load.spec import Spec

NAME_CHARACTERS = 120
LATE_SHARE = 0.05
"""Of the mean workflow time: a client that is later than that is said."""


class Outcome(NamedTuple):
    """One repeat, as it goes into a result."""

    repeat: int
    rows: dict[Kind, list[dict[str, Any]]]
    figures: dict[str, float | None]
    complete: bool
    energy: dict[str, Any]
    notes: tuple[Note, ...]


def outcome_of(spec: Spec, load: Load, repeat: int, playing: Playing) -> Outcome:
    """A play's rows and figures."""
    rows = rows_of(load, repeat, playing)
    client_sends = spec.policy == AS_IS or spec.way in ("hinted", "bare")
    figures = figures_of(rows["repeat"][0], rows["workflow"], rows["call"], client_sends=client_sends)
    return Outcome(repeat, rows, figures, playing.complete, playing.energy.document(), playing.notes)


def play_virtual(spec: Spec, repeat: int, on_news: Callable[[int], None] | None = None) -> Outcome:
    """A repeat on the twin in virtual time, behind its warm-up, with an engine and a scheduler of its own."""
    from bench.load.virtual import VirtualArm

    arm = VirtualArm(spec, on_news)
    if spec.warm_up_seconds > 0:
        warm = arm.play(load_of(spec, WARM_UP))
        if not warm.complete:
            raise KeyboardInterrupt
    load = load_of(spec, repeat)
    return outcome_of(spec, load, repeat, arm.play(load))


class Keeper:
    """The result of one configuration while it is made."""

    def __init__(self, spec: Spec, folder: Path, meta: dict[str, Any], *, resume: bool = False) -> None:
        """`resume`: go on with what is there. ResultFault where it cannot be written."""
        self.spec = spec
        self._writer = Writer(folder / file_name(spec), {"spec": spec.document(), **meta})
        if resume:
            self._writer.resume()
        self._figures = self._writer.figures
        self._notes: dict[str, str] = {}
        for note in self._writer.meta.get("notes", ()):
            if note["code"] != "interrupted":
                self._notes[note["code"]] = note["text"]

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._writer.path

    @property
    def summary(self) -> dict[str, Any]:
        """As it stands in the metadata."""
        return summary([self._figures[repeat] for repeat in sorted(self._figures)])

    @property
    def missing(self) -> list[int]:
        """Repeats that are still to be played."""
        return [repeat for repeat in range(1, self.spec.repeats + 1) if repeat not in self._figures]

    @property
    def done(self) -> int:
        """Repeats that were played to their end."""
        return len(self._figures)

    def add(self, outcome: Outcome) -> None:
        """Keep a repeat, also one that was broken off. ResultFault: the disk has what was done before."""
        if outcome.complete:
            self._figures[outcome.repeat] = outcome.figures
        for note in (*outcome.notes, *found_in(outcome)):
            self._notes[note.code] = note.text
        if self.spec.way == "parrot" and "usage_missing" in self._notes:
            self._notes.pop("cached_tokens_missing", None)
            self._notes["usage_missing"] = "Parrot's API tells its client of no tokens"
        self._writer.add(outcome.rows)
        whole = self.done == self.spec.repeats
        detail = "" if whole else f"{self.done} of {self.spec.repeats} repeats so far"
        self._write("complete" if whole else "partial", detail, energy=outcome.energy)

    def interrupted(self, why: str = "Ctrl-C") -> None:
        """Mark what there is."""
        self._notes["interrupted"] = why
        self._write("interrupted", f"{why} after {self.done} of {self.spec.repeats} repeats")

    def _write(self, state: str, detail: str, **changes: Any) -> None:
        notes = [{"code": code, "text": text} for code, text in sorted(self._notes.items())]
        self._writer.write(
            state=state, state_detail=detail, repeats_done=self.done, repeats_wanted=self.spec.repeats, notes=notes,
            summary=self.summary, **changes,
        )  # fmt: skip


def file_name(spec: Spec) -> str:
    """Of a configuration; a long one is cut, and a digest makes it its own."""
    name = spec.name
    if len(name) > NAME_CHARACTERS:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:NAME_CHARACTERS]}-{digest}"
    return name + SUFFIX


def found_in(outcome: Outcome) -> list[Note]:
    """What the rows themselves say that is to be known beside the figures."""
    from bench.load.playing import Note

    repeat, calls = outcome.rows["repeat"][0], outcome.rows["call"]
    good = [call for call in calls if call["good"]]
    notes = []
    if failed := [call for call in calls if not call["good"]]:
        first = failed[0]
        notes.append(
            Note("failed_calls", f"{len(failed)} of {len(calls)} calls failed, as {first['node']}: {first['error']}")
        )
    told = [call for call in good if call["output_tokens"] is not None]
    if good and len(told) < len(good):
        notes.append(Note("usage_missing", f"{len(good) - len(told)} answers did not say how many tokens they have"))
    shorter = [call for call in told if call["output_tokens"] != call["wanted_output_tokens"]]
    if shorter and len(told) == len(good):
        share = f"{len(shorter)} of {len(told)} answers are not as long as the workload says"
        notes.append(Note("lengths_ignored", share))
    if good and repeat["cached_tokens"] is None:
        notes.append(Note("cached_tokens_missing", "the engine does not say which prompt tokens were cached"))
    elif good and repeat["cached_tokens"] < SHARED_LEAST * repeat["shareable_tokens"]:
        had, could = repeat["cached_tokens"], repeat["shareable_tokens"]
        notes.append(
            Note("prefix_not_shared", f"{had:,} prompt tokens came from the prefix cache; {could:,} are shared")
        )
    late, p50 = outcome.figures["late_p99_s"], outcome.figures["workflow_p50_s"]
    if late is not None and p50 is not None and late > LATE_SHARE * p50:
        notes.append(Note("late_client", f"1 % of first calls were sent {late:.3f} s late or more: the client had no"
                          " time or no place, and the workflows' seconds include that"))  # fmt: skip
    if repeat["gpu_joules"] is None:
        notes.append(Note("energy_unavailable", str(outcome.energy["detail"])))
    return notes
