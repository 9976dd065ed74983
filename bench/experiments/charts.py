"""The report's pictures, as SVG that takes its colours from the page. An arm is a colour and a shape."""

from __future__ import annotations

from html import escape
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING

from bench.experiments.pairs import value_of
from scheduler.experiments.marks import excluded_by

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from bench.experiments.analyse import Effect
    from scheduler.experiments.rows import BlockRow

WIDE, NARROW = 760.0, 370.0
"""On a screen, and on a phone: the page has both pictures and shows one."""
LEFT, RIGHT = 56.0, 16.0
BAND = 16.0
HATCH = (  # an id of each picture's own: where one is not shown, its pattern is not to be had
    '<defs><pattern id="{}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" y1="0" x2="0" y2="6" class="hatch"/></pattern></defs>'
)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high."""
    if not high > low:
        return [low]
    step = 10.0 ** floor(log10((high - low) / most))
    step *= next((times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= most), 10)
    first = ceil(low / step)
    return [number * step for number in range(first, floor(high / step) + 1)]


def both(draw: Callable[[float], str]) -> str:
    """A picture in both widths."""
    return "".join(
        f'<div class="{kind}">{picture}</div>' for kind, width in (("wide", WIDE), ("narrow", NARROW))
        if (picture := draw(width))
    )  # fmt: skip


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
    return f"{head}{''.join(parts)}</svg>"


def _text(x: float, y: float, said: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(said)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _mark(x: float, y: float, arm: int, said: str) -> str:
    title = f"<title>{escape(said)}</title>"
    if arm:
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" class="treatment">{title}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.8" class="control">{title}</circle>'


def intervals(effects: Sequence[tuple[str, Effect]], label: str, width: float) -> str:
    """Effects in %, a line each: what is known, its 95 % interval, and 0. Names are beside the lines, or above them."""
    known = [(name, effect.estimate) for name, effect in effects if effect.estimate is not None]
    if not known:
        return ""
    ends = sorted([100 * end for _, estimate in known for end in (estimate.low, estimate.high) if isfinite(end)])
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    pad = 0.05 * (high - low or 1.0)
    low, high = low - pad, high + pad
    beside = width == WIDE
    left, row = (230.0, 26.0) if beside else (RIGHT, 42.0)
    height = row * len(known) + 34

    def x(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (width - left - RIGHT)

    parts = []
    for at in ticks(low, high, 6 if beside else 4):
        parts.append(_line(x(at), 4, x(at), height - 26, "grid"))
        parts.append(_text(x(at), height - 10, f"{at:+g} %" if at else "0", "middle", "axis"))
    parts.append(_line(x(0), 4, x(0), height - 26, "zero"))
    for number, (name, estimate) in enumerate(known):
        y = row * number + (18 if beside else 32)
        parts.append(_text(left - 10, y + 4, name, "end") if beside else _text(0, y - 14, name))
        parts.append(_line(x(100 * estimate.low), y, x(100 * estimate.high), y, "interval"))
        said = f"{name}: {100 * estimate.effect:+.1f} % ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
        parts.append(_mark(x(100 * estimate.effect), y, 1, said))
    return _svg(width, height, label, parts)


def timeline(
    rows: Sequence[BlockRow], effect: Effect, arms: Sequence[str], left_out: Collection[int],
    lanes: Callable[[int], Sequence[int]], width: float,
) -> str:  # fmt: skip
    """A block each: its value, and below it whose it was (`lanes`: the arms that a block had at once, one below the
    other); blocks that do not count (`left_out`) are hatched."""
    metric = effect.metric
    height, top, bottom = 250.0, 10.0, 200.0
    if not rows:
        return ""
    start, end = min(row.start for row in rows), max(row.end for row in rows)
    values = [(row, _value(row, effect)) for row in rows]
    known = [value for _, value in values if value is not None]
    highest = max(known, default=1.0) * 1.08 or 1.0

    def x(at: float) -> float:
        return LEFT + (at - start) / (end - start) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - value / highest * (bottom - top)

    hatch = f"hatch{width:.0f}"
    parts = [HATCH.format(hatch)]
    for at in ticks(0.0, highest, 5):
        parts.append(_line(LEFT, y(at), width - RIGHT, y(at), "grid"))
        parts.append(_text(LEFT - 8, y(at) + 4, f"{at:g}", "end", "axis"))
    for row, value in values:
        marks = excluded_by(row, metric)
        said = f"block {row.number}, {arms[row.arm]}"
        left, broad = x(row.start), max(0.6, x(row.end) - x(row.start) - 0.4)
        at_once = lanes(row.number)
        for lane, arm in enumerate(at_once):
            if arm != row.arm:
                continue
            high, kind = BAND / len(at_once), "treatment" if arm else "control"
            parts.append(f'<rect x="{left:.1f}" y="{bottom + 8 + lane * high:.1f}" width="{broad:.1f}"'
                         f' height="{high:.1f}" class="{kind}"><title>{escape(said)}</title></rect>')  # fmt: skip
        if marks or row.number in left_out:
            said += f": not counted ({', '.join(marks) or 'its pair is not whole'})"
            parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{broad:.1f}" height="{bottom - top:.1f}"'
                         f' fill="url(#{hatch})"><title>{escape(said)}</title></rect>')  # fmt: skip
        elif value is not None:
            parts.append(_mark((x(row.measured_from) + x(row.end)) / 2, y(value), row.arm,
                               f"{said}: {value:.4g} {metric.unit}"))  # fmt: skip
    seconds, unit = (3600, "h") if end - start >= 2 * 3600 else (60, "min")
    for at in ticks(0.0, (end - start) / seconds, 6 if width == WIDE else 4):
        place = x(start + seconds * at)
        anchor = "middle" if place < width - 2 * RIGHT else "end"
        parts.append(_text(place + (RIGHT if anchor == "end" else 0.0), height - 10, f"{at:g} {unit}", anchor, "axis"))
    return _svg(width, height, f"{metric.name} of each block over time", parts)


def _value(row: BlockRow, effect: Effect) -> float | None:
    metric = effect.metric
    if excluded_by(row, metric):
        return None
    if metric.kind == "quantile":
        times = sorted(row.workflow_seconds)
        return times[min(len(times) - 1, int(metric.quantile * len(times)))] if times else None
    if metric.energy and not effect.components:
        return None
    up, down = (value_of(row, name, effect.components) for name in (metric.numerator, metric.denominator))
    return up / down if down > 0 else None


def sequence(effect: Effect, width: float) -> str:
    """What could have been said after each pair."""
    path = [(number, 100 * low, 100 * high) for number, (low, high) in enumerate(effect.path, 1)
            if isfinite(low) and isfinite(high)]  # fmt: skip
    if len(path) < 2:
        return ""
    # The first intervals are wide: the picture is of the later ones.
    reach = sorted(max(abs(low), abs(high)) for _, low, high in path)[len(path) // 2] * 1.5
    height, top, bottom = 220.0, 10.0, 180.0
    last = len(effect.path)

    def x(number: float) -> float:
        return LEFT + number / last * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - (min(max(value, -reach), reach) + reach) / (2 * reach) * (bottom - top)

    parts = []
    for at in ticks(-reach, reach, 5):
        parts.append(_line(LEFT, y(at), width - RIGHT, y(at), "grid"))
        parts.append(_text(LEFT - 8, y(at) + 4, f"{at:+g} %" if at else "0", "end", "axis"))
    upper = " ".join(f"{x(number):.1f},{y(high):.1f}" for number, _, high in path)
    lower = " ".join(f"{x(number):.1f},{y(low):.1f}" for number, low, _ in reversed(path))
    parts.append(f'<polygon points="{upper} {lower}" class="band"/>')
    parts.append(_line(LEFT, y(0), width - RIGHT, y(0), "zero"))
    parts += [_text(x(at), height - 16, f"{at:g}", "middle", "axis") for at in ticks(0, last)]
    parts.append(_text((LEFT + width) / 2, height - 2, "pairs of blocks", "middle", "axis"))
    return _svg(width, height, "confidence sequence of the effect after each pair", parts)
