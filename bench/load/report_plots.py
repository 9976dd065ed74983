"""How do results look? Figures of the report: told apart without colour, and legible at a phone's width."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.report_data import BASELINES
from bench.load.report_times import lanes
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.load.figures import Interval
    from bench.load.report_times import TimeLine

# Okabe and Ito: told apart by colour-blind people; markers and dashes say it once more, for print without colour.
LOOKS = (
    ("#000000", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-"),
    ("#E69F00", "P", "--"),
    ("#56B4E9", "X", "-."),
)
FIXED = {"vLLM as is": 0, "passthrough": 3, "fifo": 4, "parrot": 1, "las": 5, "joule": 2}
WIDTH_INCHES = 4.7
"""So narrow that letters are still letters where a phone shows it as wide as its screen."""
DPI = 170
SAME = 0.002
"""Lines that differ by less, everywhere, are drawn as one and named together: they would hide each other."""
LANES_FROM = 24
SIZES = (7.5, 6.0, 4.5, 3.0)
"""Of markers, the first filled: one on another shows both."""


class Point(NamedTuple):
    """A place on the axis, and a figure there."""

    x: float
    y: Interval


def need_matplotlib() -> None:
    """BenchError that says how to get it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError("the report's plots need matplotlib: pip install 'joulegate[bench]'") from None


def _figure(height: float, rows: int = 1, **more: Any) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.35,
                         "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **more)[:, 0]


def _png(figure: Any) -> bytes:
    """Of few colours, so it is small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    small = io.BytesIO()
    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    drawn.convert("RGB").quantize(64).save(small, format="PNG", optimize=True)
    return small.getvalue()


def look(name: str) -> tuple[str, str, str]:
    """Colour, marker and dash of a policy, the same in each figure."""
    known = FIXED.get(name)
    if known is None:
        first = FIXED.get(next((each for each in FIXED if name.startswith(each)), ""), 0)
        known = (first + 1 + sum(map(ord, name))) % len(LOOKS)
    return LOOKS[known]


def together(series: Mapping[str, Mapping[str, Sequence[Point]]]) -> list[list[str]]:
    """Names whose points are the same in every panel."""
    found: list[list[str]] = []
    for name, panels in series.items():
        for group in found:
            if _equal(series[group[0]], panels):
                group.append(name)
                break
        else:
            found.append([name])
    return found


def _equal(a: Mapping[str, Sequence[Point]], b: Mapping[str, Sequence[Point]]) -> bool:
    def near(x: float | None, y: float | None) -> bool:
        return x is y or (x is not None and y is not None and abs(x - y) <= SAME * max(abs(x), abs(y)))

    return a.keys() == b.keys() and all(
        len(a[panel]) == len(b[panel])
        and all(near(p.x, q.x) and near(p.y.mean, q.y.mean) for p, q in zip(a[panel], b[panel], strict=True))
        for panel in a
    )


def panels(
    series: Mapping[str, Mapping[str, Sequence[Point]]], titles: Mapping[str, str], x_label: str, *, doubling: bool
) -> bytes:
    """One panel a figure (keys of `titles`) above the same axis, one line a policy, with its 95 % interval. `series`:
    policy → figure → points from left to right. `doubling`: the axis is of powers of two."""
    named = together(series)
    figure, axes = _figure(0.75 + 1.3 * len(titles), len(titles), sharex=True)
    handles = {}
    for order, names in enumerate(named):
        colour, marker, dash = look(names[0])
        for panel, (measure, title) in zip(axes, titles.items(), strict=True):
            points = [point for point in series[names[0]][measure] if point.y.mean is not None]
            bars = [[_reach(point.y, low=True) for point in points], [_reach(point.y, low=False) for point in points]]
            handles[" = ".join(names)] = panel.errorbar(
                [point.x for point in points], [point.y.mean for point in points], yerr=bars, color=colour,
                marker=marker, linestyle=dash, capsize=2.5, elinewidth=0.8, linewidth=1.4,
            markersize=SIZES[min(order, 3)],
                markerfacecolor="none" if order else colour, zorder=3 + order,
            )  # fmt: skip
            panel.set_title(title, loc="left")
            top = max(
                (p.y.mean for lines in series.values() for p in lines[measure] if p.y.mean is not None), default=1
            )
            panel.set_ylim(0, 1.18 * top or 1)
    ticks = sorted({point.x for lines in series.values() for points in lines.values() for point in points})
    if doubling:
        axes[-1].set_xscale("log", base=2)
    if len(ticks) <= 8:
        axes[-1].set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes[-1].minorticks_off()
    axes[-1].set_xlabel(x_label)
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return _png(figure)


def _reach(y: Interval, *, low: bool) -> float:
    end = y.low if low else y.high
    return 0.0 if end is None or y.mean is None else abs(y.mean - end)


class Spot(NamedTuple):
    """A result in the plane of energy and latency."""

    seconds: Interval
    joules: Interval
    on_front: bool
    label: str


def pareto(series: Mapping[str, Sequence[Spot]]) -> bytes:
    """Energy against latency: a line through what no other setting of the same policy beats in both, the rest faint."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    as_points = {name: {"": [Point(s.seconds.mean or 0, s.joules) for s in spots]} for name, spots in series.items()}
    figure, (axes,) = _figure(3.9)
    xs = [spot.seconds.mean for spots in series.values() for spot in spots if spot.seconds.mean]
    ys = [spot.joules.mean for spots in series.values() for spot in spots if spot.joules.mean]
    for order, names in enumerate(together(as_points)):
        colour, marker, dash = look(names[0])
        spots = series[names[0]]
        best = [spot for spot in spots if spot.on_front]
        rest = [spot for spot in spots if not spot.on_front]
        fill = "none" if order else colour
        axes.plot([s.seconds.mean for s in rest], [s.joules.mean for s in rest], color=colour, marker=marker,
                  linestyle="", markersize=4, alpha=0.35, markerfacecolor=fill)  # fmt: skip
        axes.errorbar(
            [s.seconds.mean for s in best], [s.joules.mean for s in best],
            xerr=[[_reach(s.seconds, low=low) for s in best] for low in (True, False)],
            yerr=[[_reach(s.joules, low=low) for s in best] for low in (True, False)],
            color=colour, marker=marker, linestyle=dash, capsize=2, elinewidth=0.6, linewidth=1.4,
            markersize=SIZES[min(order, 3)],
            markerfacecolor=fill, label=" = ".join(names), zorder=3 + order,
        )  # fmt: skip
        for spot in best:
            if spot.label:
                axes.annotate(spot.label, (spot.seconds.mean, spot.joules.mean), xytext=(5, 5 - 13 * (order % 2)),
                              textcoords="offset points", fontsize=7, color=colour)  # fmt: skip
    for values, scale, limits in ((xs, axes.set_xscale, axes.set_xlim), (ys, axes.set_yscale, axes.set_ylim)):
        if values and max(values) > 5 * min(values):
            scale("log")
            limits(min(values) / 1.5, 2 * max(values))
            axis = axes.xaxis if values is xs else axes.yaxis
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
        else:
            limits(0, 1.25 * max(values, default=1))
    axes.set(xlabel="median seconds of a workflow", ylabel="GPU joules of a workflow")
    figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return _png(figure)


def bars(values: Mapping[str, Mapping[str, Interval]], title: str, *, one: bool) -> bytes:
    """Groups of bars (workload → policy or setting → figure); `one`: with a line at 1, for ratios."""
    figure, (axes,) = _figure(2.9)
    inner = list(dict.fromkeys(name for each in values.values() for name in each))
    hatches = ("", "///", "...", "xx", "\\\\\\", "++")
    width = 0.8 / max(1, len(inner))
    for order, name in enumerate(inner):
        fallback = LOOKS[order % len(LOOKS)][0]
        colour = look(name)[0] if name in FIXED else fallback
        found = [
            (at, each[name]) for at, each in enumerate(values.values()) if name in each and each[name].mean is not None
        ]
        axes.bar(
            [at + (order - (len(inner) - 1) / 2) * width for at, _ in found], [y.mean for _, y in found], width,
            yerr=[[_reach(y, low=low) for _, y in found] for low in (True, False)], label=name, color=colour,
            alpha=0.75, hatch=hatches[order % len(hatches)], edgecolor="black", linewidth=0.6, capsize=2.5,
            error_kw={"elinewidth": 0.9},
        )  # fmt: skip
    if one:
        axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(values)), list(values))
    axes.grid(visible=False, axis="x")
    axes.set_title(title, loc="left")
    top = max((y.mean for each in values.values() for y in each.values() if y.mean is not None), default=1.0)
    axes.set_ylim(0, 1.25 * max(top, 1.0 if one else 0.0) or 1)
    figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return _png(figure)


def gantt(lines: Sequence[TimeLine], names: Sequence[str]) -> bytes:
    """The same workflow once under each policy: calls held and running, the critical path, and the power underneath."""
    rows = [lanes(line.calls, LANES_FROM) for line in lines]
    heights = [x for each in rows for x in (0.55 + 0.14 * (max(each) + 1), 0.8)]
    figure, axes = _figure(0.9 + sum(heights) + 0.3 * len(lines), 2 * len(lines), sharex=True, height_ratios=heights)
    most = max(watts for line in lines for _, watts in line.watts) if any(line.watts for line in lines) else 1.0
    for at, (line, lane, name) in enumerate(zip(lines, rows, names, strict=True)):
        above, below = axes[2 * at], axes[2 * at + 1]
        _calls(above, line, lane, legend=not at)
        above.set_title(f"{name}: {line.seconds:,.1f} s", loc="left")
        if line.deadline_seconds is not None:
            for panel in (above, below):
                panel.axvline(line.deadline_seconds, color="black", linestyle=(0, (1, 1)), linewidth=1.3,
                              label="deadline" if panel is above and not at else None)  # fmt: skip
        if line.watts:
            below.step([x for x, _ in line.watts], [watts for _, watts in line.watts], where="pre", color="#0072B2")
            below.set_ylim(0, 1.1 * most)
        else:
            below.text(0.5, 0.5, "power was not measured", transform=below.transAxes, ha="center", va="center")
        below.set_ylabel("GPU W")
    axes[-1].set_xlabel("seconds since the workflow should have begun")
    end = max(line.seconds for line in lines)
    seen = [line.deadline_seconds for line in lines if line.deadline_seconds and line.deadline_seconds < 3 * end]
    axes[-1].set_xlim(-0.01 * end, 1.03 * max([end, *seen]))
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    return _png(figure)


def _calls(axes: Any, line: TimeLine, lane: Sequence[int], *, legend: bool) -> None:
    for call, row in zip(line.calls, lane, strict=True):
        begun = min(call["sent_s"] + (call["held_s"] or 0.0), call["ended_s"])
        path = call["node"] in line.critical
        axes.barh(row, begun - call["sent_s"], left=call["sent_s"], color="#dddddd", hatch="////", height=0.75,
                  edgecolor="#777777", linewidth=0)  # fmt: skip
        axes.barh(row, call["ended_s"] - begun, left=begun, color="#D55E00" if path else "#56B4E9", edgecolor="black",
                  linewidth=1.0 if path else 0, height=0.75)  # fmt: skip
    if legend:
        for label, colour, hatch, edge in (
            ("held by the gateway", "#dddddd", "////", 0), ("at the engine", "#56B4E9", "", 0),
            ("at the engine, on the critical path", "#D55E00", "", 1),
        ):  # fmt: skip
            axes.barh(0, 0, color=colour, hatch=hatch, label=label, edgecolor="black", linewidth=edge)
    if len(line.calls) <= LANES_FROM:
        axes.set_yticks(range(len(line.calls)), [_short(call["node"]) for call in line.calls], fontsize=6)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(line.calls)} calls")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


__all__ = ["BASELINES", "Point", "Spot"]
