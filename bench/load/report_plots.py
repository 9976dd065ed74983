"""How do results look? Figures of the report, each drawn for light and for dark paper."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.load.report_data import Point, TimeLine

# Okabe and Ito: told apart by colour-blind people; markers and dashes say it once more, for print without colour.
LOOKS = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
)
STYLES: dict[str, Any] = {
    "light": {"figure.facecolor": "white", "axes.facecolor": "white"},
    "dark": {
        "figure.facecolor": "#16181c", "axes.facecolor": "#16181c", "savefig.facecolor": "#16181c",
        "text.color": "#e6e6e6", "axes.labelcolor": "#e6e6e6", "axes.edgecolor": "#aaaaaa",
        "xtick.color": "#e6e6e6", "ytick.color": "#e6e6e6", "grid.color": "#444444",
    },
}  # fmt: skip
SIZE = (6.4, 4.0)


def need_matplotlib() -> None:
    """BenchError that says how to get it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError("the report's plots need matplotlib: pip install 'joulegate[bench]'") from None


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def lines(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, looks: Sequence[str], style: str) -> bytes:
    """One line a policy, with its 95 % interval as bars where there is one. `looks`: all policies, so that each has the
    same colour in every figure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLES[style]):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for policy, points in series.items():
            colour, marker, dash = LOOKS[looks.index(policy) % len(LOOKS)]
            ys = [point.y for point in points]
            bars = [[point.y - point.low for point in points], [point.high - point.y for point in points]]
            axes.errorbar(
                [point.x for point in points], ys, yerr=bars, color=colour, marker=marker, linestyle=dash,
                capsize=3, label=policy,
            )  # fmt: skip
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.4)
        axes.legend()
        return _png(figure)


def gantt(line: TimeLine, style: str) -> bytes:
    """Calls of a workflow, held and running, its critical path, and the power underneath."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLES[style]):
        calls = line.calls
        figure = Figure(figsize=(6.4, min(14.0, 2.6 + 0.2 * len(calls))), layout="constrained")
        heights = [max(2.0, 0.2 * len(calls)), 1.2]
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        for at, call in enumerate(calls):
            begun = min(call["sent_s"] + (call["held_s"] or 0.0), call["ended_s"])
            path = call["node"] in line.critical
            above.barh(at, begun - call["sent_s"], left=call["sent_s"], color="#999999", hatch="///", height=0.7)
            above.barh(
                at,
                call["ended_s"] - begun,
                left=begun,
                color="#D55E00" if path else "#56B4E9",
                edgecolor="black",
                linewidth=1.2 if path else 0,
                height=0.7,
            )
        for label, colour, hatch in (
            ("held", "#999999", "///"), ("running, on the critical path", "#D55E00", ""), ("running", "#56B4E9", ""),
        ):  # fmt: skip
            above.barh(0, 0, color=colour, hatch=hatch, label=label)
        above.set_yticks(range(len(calls)), [call["node"] for call in calls], fontsize=7)
        above.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        below.step([at for at, _ in line.watts], [watts for _, watts in line.watts], where="pre", color="#0072B2")
        below.set(xlabel="seconds since the play began", ylabel="GPU W")
        below.set_ylim(bottom=0)
        below.set_xlim(*line.span)
        return _png(figure)
