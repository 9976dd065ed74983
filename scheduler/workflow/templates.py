"""What do runs of one kind usually look like, and how much of it is still to come?

Each run that closes leaves its shape: how many calls on each level (those with equally many before them), their tokens
and times, and what came behind. A template is the last 16 shapes of one name (or fingerprint).
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from scheduler.workflow.forecasts import Forecast
from scheduler.workflow.quantiles import UPPER_QUANTILE, LruTable, RecentQuantiles

if TYPE_CHECKING:
    from scheduler.workflow.workflow import Workflow

SHAPES_KEPT = 16
LEVELS_MAX = 128
"""What lies deeper is folded into the last level."""


class Level(NamedTuple):
    """One level of a run: its own figures, and what came behind it. Seconds leave out what was held back here."""

    width: int
    output_tokens: int
    calls_behind: int
    output_tokens_behind: int
    seconds_behind: float


class Remainder(NamedTuple):
    """What still comes behind a level."""

    calls: Forecast
    output_tokens: Forecast
    seconds: Forecast


NOTHING = Remainder(Forecast(0.0, 0.0), Forecast(0.0, 0.0), Forecast(0.0, 0.0))


class Template:
    """The last shapes of one kind of workflow, and the pauses its clients make."""

    __slots__ = ("_cached", "pauses", "shapes")

    def __init__(self) -> None:
        self.shapes: deque[tuple[Level, ...]] = deque(maxlen=SHAPES_KEPT)
        self.pauses = RecentQuantiles()
        """Seconds from the end of a workflow's last live call to its next call."""
        self._cached: dict[int, Remainder] = {}

    def learn(self, workflow: Workflow) -> None:
        """A run is over; one without a finished call says nothing."""
        shape = shape_of(workflow)
        if shape:
            self.shapes.append(shape)
            self._cached.clear()

    def remainder(self, level: int) -> Remainder:
        """What comes behind a level, by those earlier runs that came so far; nothing if none did."""
        level = min(level, LEVELS_MAX - 1)
        found = self._cached.get(level)
        if found is None:
            rows = [shape[level] for shape in self.shapes if len(shape) > level]
            found = NOTHING
            if rows:
                found = Remainder(
                    _quantiles([row.calls_behind for row in rows]),
                    _quantiles([row.output_tokens_behind for row in rows]),
                    _quantiles([row.seconds_behind for row in rows]),
                )
            self._cached[level] = found
        return found

    def forecast(self, workflow: Workflow) -> Remainder:
        """What comes behind all that the workflow has made so far."""
        level = max((node.level for node in workflow.latest.values()), default=-1)
        return self.remainder(level) if level >= 0 else NOTHING

    def widths(self) -> list[Forecast]:
        """Calls on each level."""
        depth = max(map(len, self.shapes), default=0)
        return [
            _quantiles([shape[level].width for shape in self.shapes if len(shape) > level]) for level in range(depth)
        ]


def _quantiles(values: list[int] | list[float]) -> Forecast:
    ordered = sorted(values)
    size = len(ordered)
    return Forecast(ordered[size // 2], ordered[min(size, ceil(UPPER_QUANTILE * (size + 1))) - 1])


def shape_of(workflow: Workflow) -> tuple[Level, ...]:
    """The finished calls of a workflow, level by level."""
    widths: dict[int, int] = {}
    tokens: dict[int, int] = {}
    ends: dict[int, float] = {}
    for node in workflow.graph.nodes.values():
        if node.state != "finished":
            continue
        level = min(node.level, LEVELS_MAX - 1)
        ends[level] = max(ends.get(level, 0.0), node.head_seconds + node.lasted_seconds)
        if not node.tool:
            widths[level] = widths.get(level, 0) + 1
            tokens[level] = tokens.get(level, 0) + (node.output_tokens or 0)
    levels: list[Level] = []
    calls_behind = tokens_behind = 0
    last_end = max(ends.values(), default=0.0)
    for level in range(max(ends, default=-1), -1, -1):
        width, output = widths.get(level, 0), tokens.get(level, 0)
        seconds_behind = max(0.0, last_end - ends[level]) if level in ends else levels[-1].seconds_behind
        levels.append(Level(width, output, calls_behind, tokens_behind, seconds_behind))
        calls_behind += width
        tokens_behind += output
    levels.reverse()
    return tuple(levels)


class Templates:
    """All templates, bounded: the one not used for longest goes."""

    def __init__(self, templates_max: int) -> None:
        self.table: LruTable[tuple[str, str], Template] = LruTable(templates_max, Template)

    def of(self, workflow: Workflow) -> Template | None:
        """The template of runs like this one."""
        return self.table.get(workflow.template_key)

    def learn(self, workflow: Workflow) -> None:
        """A run is over."""
        self.table.take(workflow.template_key).learn(workflow)

    def learn_pause(self, workflow: Workflow, seconds: float) -> None:
        """The client made its next call so long after the last live one ended."""
        self.table.take(workflow.template_key).pauses.add(seconds)

    def pause(self, workflow: Workflow) -> Forecast:
        """How long the client is silent between calls; zeros where nothing is known."""
        template = self.of(workflow)
        if template is None or not template.pauses.count:
            return Forecast(0.0, 0.0)
        return Forecast(template.pauses.median, template.pauses.upper)
