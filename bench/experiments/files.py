"""An experiment's blocks on disk: what the gateway wrote, a JSON line each, and the same as CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.programs import BenchError
from scheduler.experiments.agreement import Agreement
from scheduler.experiments.definition import Definition, ExperimentError, definition_of
from scheduler.experiments.rows import BlockRow, row_of
from scheduler.experiments.saved import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Recording(NamedTuple):
    """A file of closed blocks."""

    definition: Definition
    started_at: float
    """Unix seconds."""
    rows: list[BlockRow]
    stopped_why: str | None
    ended: bool
    shadow_dropped: str | None = None
    """Why the shadow was asked no more."""
    cache_resets: tuple[int, int] | None = None
    """Blocks that began with empty prefix caches, and those that should have; None: it was not wanted."""
    pace: float = 1.0
    """Seconds of the experiment in a real one: above 1 before a faster twin."""


def read(path: Path) -> Recording:
    """BenchError, with the line, for a file that is none. A last line that was cut off (a kill) is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("an object is wanted")
        except (ValueError, TypeError) as error:
            if number == len(lines) > 1:
                break
            raise BenchError(f"{path}:{number}: {error}") from None
        records.append(record)
    if not records or records[0].get("joulegate_experiment_blocks") != VERSION:
        raise BenchError(f'{path}: its first line is not {{"joulegate_experiment_blocks": {VERSION}, …}}')
    rows, last = [], {}
    for number, record in enumerate(records[1:], 2):
        try:
            if "ended_at" in record:
                last = record
            else:
                rows.append(row_of(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"{path}:{number}: no row of a block: {error!r}") from None
    try:
        definition = definition_of(records[0]["definition"])
        pace = float(records[0].get("pace", 1.0))
        started_at = float(records[0]["started_at"]) / pace
    except (ExperimentError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BenchError(f"{path}:1: {error}") from None
    wanted = definition.reset_prefix_cache != "no"
    resets = tuple(last.get("cache_resets", (0, 0))) if wanted else None
    return Recording(
        definition, started_at, rows, last.get("stopped_why"), last.get("ended_at") is not None,
        last.get("shadow_dropped"), resets, pace,
    )  # fmt: skip


def as_csv(rows: Sequence[BlockRow], arms: Sequence[str]) -> str:
    """The block table: all that the ratio metrics are made of. (Workflow times are in the JSON lines.)"""
    names = [name for name in BlockRow._fields if name not in ("times", "marks", "arm", "shadow")]
    shadows = Agreement._fields if any(row.shadow is not None for row in rows) else ()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "arm", "policy", "marks", *(f"shadow_{name}" for name in shadows)])
    for row in rows:
        values = ["" if (value := getattr(row, name)) is None else value for name in names]
        writer.writerow([*values, "treatment" if row.arm else "control", arms[row.arm], " ".join(row.marks),
                         *(getattr(row.shadow or Agreement(), name) for name in shadows)])  # fmt: skip
    return out.getvalue()
