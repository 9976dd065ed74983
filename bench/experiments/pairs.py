"""The pairs of blocks as arrays: what is divided by what in each, in which order the arms came, at which load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scheduler.experiments.marks import pairs_of
from scheduler.experiments.rows import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scheduler.experiments.marks import Pair
    from scheduler.experiments.metrics import Metric
    from scheduler.experiments.rows import BlockRow


@dataclass(frozen=True)
class PairTable:
    """One row a pair; column 0 the control, column 1 the treatment. `split_and_swap` adds both blocks of an arm up."""

    metric: Metric
    pairs: list[Pair]
    left: list[BlockRow]
    """Rows that do not count."""
    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]
    began: NDArray[np.float64]
    """Workflows that arrived: decided by users, not by arms."""
    offered: NDArray[np.float64]
    """Tokens of those."""
    seconds: NDArray[np.float64]
    treatment_first: NDArray[np.bool_]
    components: tuple[str, ...] = ()
    """Whose joules are added up: those that are known in all pairs."""

    def __len__(self) -> int:
        return len(self.pairs)


def components_of(rows: Sequence[BlockRow]) -> tuple[str, ...]:
    """The components whose joules are known in every one of these rows."""
    return tuple(
        name for name in COMPONENTS if rows and all(getattr(row, f"{name}_joules") is not None for row in rows)
    )


def value_of(row: BlockRow, name: str, components: tuple[str, ...] = ()) -> float:
    """A field of a row, or the joules of these components."""
    if name == "joules":
        return float(sum(getattr(row, f"{component}_joules") for component in components))
    return float(getattr(row, name))


def table_of(rows: Sequence[BlockRow], metric: Metric, components: tuple[str, ...] | None = None) -> PairTable:
    """Of the rows that count for the metric. `components`: None: those that are known everywhere."""
    pairs, left = pairs_of(rows, metric)
    counted = [row for pair in pairs for row in (*pair.control, *pair.treatment)]
    known = (components or components_of(counted)) if metric.energy else ()

    def column(name: str) -> NDArray[np.float64]:
        values = [
            [sum(value_of(row, name, known) for row in arm) for arm in (pair.control, pair.treatment)] for pair in pairs
        ]
        return np.array(values, dtype=float).reshape(len(pairs), 2)

    ratio = metric.kind == "ratio"
    first = [min(pair.treatment).number < min(pair.control).number for pair in pairs]
    return PairTable(
        metric, pairs, left,
        column(metric.numerator) if ratio else np.zeros((len(pairs), 2)),
        column(metric.denominator) if ratio else np.zeros((len(pairs), 2)),
        column("began"), column("offered_tokens"), column("measured_seconds"),
        np.array(first, dtype=bool), known,
    )  # fmt: skip


def differences(table: PairTable) -> NDArray[np.float64]:
    """Treatment against control in each pair: log of the ratio, or, for shares, the difference. Pairs in which one arm
    has nothing to divide (or a ratio of 0) are left out: `nan`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if table.metric.kind == "quantile":
            share = table.metric.quantile
            each = [[_quantile(arm, share) for arm in (pair.control, pair.treatment)] for pair in table.pairs]
            values = np.array(each).reshape(len(table), 2)
        else:
            values = table.numerator / table.denominator
        found = values[:, 1] - values[:, 0] if table.metric.is_share else np.log(values[:, 1] / values[:, 0])
    return np.where(np.isfinite(found), found, np.nan)


def _quantile(rows: tuple[BlockRow, ...], share: float) -> float:
    values = [value for row in rows for value in row.workflow_seconds]
    return float(np.quantile(values, share, method="inverted_cdf")) if values else float("nan")
