"""Measured beside predicted: the figures of a comparison, and their errors summed up by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Group = Literal["time", "energy", "power"]
GROUPS: tuple[Group, ...] = ("time", "energy", "power")

FIGURES: dict[str, dict[str, Group]] = {
    "decode": {"iter_ms": "time", "j_per_tok": "energy", "power_w": "power"},
    "prefill": {"ms_per_req": "time", "j_per_tok": "energy", "power_w": "power"},
    "closed": {"makespan_s": "time", "p50": "time", "j_per_req": "energy", "power_w": "power"},
    "open": {"p50": "time", "ttft_ms": "time", "itl_ms": "time", "j_per_out_tok": "energy", "power_w": "power"},
    "coalesce": {"p50": "time", "j_per_req": "energy", "power_w": "power"},
    "burst": {
        "ttft_first_s": "time",
        "ttft_mean_s": "time",
        "ttft_last_s": "time",
        "makespan_s": "time",
        "stall_s": "time",
    },
    "workflows": {"p50_s": "time", "p95_s": "time", "j_per_workflow": "energy", "power_w": "power"},
    "mlenergy": {
        "median_itl_ms": "time",
        "output_throughput_tokens_per_sec": "time",
        "energy_per_token_joules": "energy",
        "avg_power_watts": "power",
    },
}
"""Kind of row → the figures that are compared, and what each of them is."""
LABELS: dict[str, tuple[str, ...]] = {
    "decode": ("batch", "context"),
    "prefill": ("tokens", "conc"),
    "closed": ("name", "conc"),
    "open": ("rate",),
    "coalesce": ("rate", "hold_s"),
    "burst": ("n", "prompt_tokens", "shared_tokens", "cached", "background"),
    "workflows": ("workload", "rate", "rule", "seed"),
    "mlenergy": ("task", "max_num_seqs"),
}


class Comparison(NamedTuple):
    """One figure of one row."""

    kind: str
    label: str
    group: Group
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative: predicted over measured, less one."""
        return self.predicted / self.measured - 1


class Summary(NamedTuple):
    """Errors of one kind and group, relative and without sign, except `bias`."""

    kind: str
    group: Group
    figures: int
    mean: float
    worst: float
    bias: float


def compare(kind: str, row: dict[str, Any], predicted: dict[str, Any]) -> list[Comparison]:
    """A row's figures beside the predicted ones, where both are there and the measured one is not zero."""
    label = " ".join(f"{name} {row[name]}" for name in LABELS[kind])
    return [
        Comparison(kind, label, group, figure, float(row[figure]), float(predicted[figure]))
        for figure, group in FIGURES[kind].items()
        if row.get(figure) and figure in predicted
    ]


def summarise(comparisons: Iterable[Comparison]) -> list[Summary]:
    """By kind and group, in the order in which they appear."""
    errors: dict[tuple[str, Group], list[float]] = {}
    for each in comparisons:
        errors.setdefault((each.kind, each.group), []).append(each.error)
    return [
        Summary(
            kind, group, len(values), sum(map(abs, values)) / len(values), max(map(abs, values)),
            sum(values) / len(values),
        )
        for (kind, group), values in errors.items()
    ]  # fmt: skip


def table(comparisons: Sequence[Comparison]) -> str:
    """Every figure, then the summary, as text."""
    width = max((len(each.label) for each in comparisons), default=0)
    lines = [f"{'kind':<10}{'row':<{width + 2}}{'figure':<34}{'measured':>12}{'predicted':>12}{'error':>9}"]
    lines += [
        f"{each.kind:<10}{each.label:<{width + 2}}{each.figure:<34}"
        f"{each.measured:>12.5g}{each.predicted:>12.5g}{each.error:>+9.1%}"
        for each in comparisons
    ]
    lines += ["", f"{'kind':<10}{'figures':<8}{'n':>5}{'mean error':>12}{'worst':>9}{'bias':>9}"]
    lines += [
        f"{summary.kind:<10}{summary.group:<8}{summary.figures:>5}"
        f"{summary.mean:>12.1%}{summary.worst:>9.1%}{summary.bias:>+9.1%}"
        for summary in summarise(comparisons)
    ]
    return "\n".join(lines)
