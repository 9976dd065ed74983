"""How does a report show the twin beside what was measured? From the figures of `joulegate-bench beside --json`."""

from __future__ import annotations

import json
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from bench.load import report_html as html
from bench.load import report_plots as plots
from bench.load.beside import ERRORS, HEADS, cell, errors
from bench.load.figures import Interval
from bench.load.results import ResultFault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Row = dict[str, Any]
NAME = "beside.json"
BARS = (
    ("measured", "joules_per_workflow"),
    ("twin, same sends", "same_sends_joules_per_workflow"),
    ("twin, policy anew", "twin_joules_per_workflow"),
)
TEXT = (
    "The same plays on the twin. sends: each call comes to it when it came to the engine, so what differs is the twin's"
    " fault. twin: workflows arrive as they did and the policy decides anew, as in a prediction. no tail: without the"
    " idle time behind the last arrival, in both. A ratio is to the engine without a gateway, or to passthrough."
)


def rows_of(folders: Sequence[Path]) -> list[Row]:
    """Of the folders that have the file. ResultFault if one is something else."""
    found: list[Row] = []
    for folder in folders:
        path = folder / NAME
        if not path.is_file():
            continue
        try:
            rows = list(json.loads(path.read_text(encoding="utf-8")))
            needed = {name for _, name, _ in HEADS} | {name for _, name in BARS} | {name for name, _ in ERRORS}
            if not all(needed <= row.keys() for row in rows):
                raise ValueError("rows without some of the figures")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ResultFault(f"{path}: is not of joulegate-bench beside --json: {error}") from None
        found += rows
    return found


def chapter(rows: Sequence[Row], pictures: html.Pictures) -> str:
    """Joules of each play, measured and simulated, and every figure of both."""
    figures = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        mine = [row for row in rows if row["workload"] == workload]
        values = {_setting(row, mine): {name: _of(row[figure]) for name, figure in BARS} for row in mine}
        drawing = partial(plots.bars, values, "GPU J a workflow", one=False)
        figures.append(
            pictures.figure(f"{workload}-beside", "Measured, and on the twin.", f"{workload}: one play each.", drawing)
        )
    head = [escape(title) for title, _, _ in HEADS]
    body = [[escape(cell(row[name], form)) for _, name, form in HEADS] for row in rows]
    listed = "".join(f"<li>{escape(line)}</li>" for line in errors(rows))
    return (
        f'<p>{escape(TEXT)}</p><ul>{listed}</ul><div class="plots">{"".join(figures)}</div>'
        f"{html.table(head, body, (0, 1, 2))}"
    )


def _setting(row: Row, rows: Sequence[Row]) -> str:
    """So short that it stands under its bars."""
    name = "vLLM" if row["policy"] == "none" else row["policy"].replace("passthrough", "pass")
    more = [row["promise"]] if sum(each["policy"] == row["policy"] for each in rows) > 1 else []
    if len({(each["seed"], each["repeat"]) for each in rows}) > 1:
        more.append(f"{row['seed']}/{row['repeat']}")
    return "\n".join([name, *more])


def _of(value: float | None) -> Interval:
    return Interval(value, None, None, 0 if value is None else 1)
