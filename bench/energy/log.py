"""`joulegate-bench energy-log FILE…`: how well does the live model foretell recorded traffic, window by window?

A gateway's event logs are played again through a fresh scheduler each. Joules of a window are predicted before they are
seen, as in the gateway; so a log can be asked again after the model has changed.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, cast

from bench.programs import BenchError
from proxy.policies import load_plugins
from scheduler.eventlog import LogCut, LogFault, replay

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scheduler.core import Scheduler
    from scheduler.energy.window import Window

REPORT_SECONDS = 5.0
NEARLY_SECONDS = 0.25
"""A span that lacks so much is long enough: windows close with the probes."""
SETTLED_SECONDS = 60.0


class Span(NamedTuple):
    """One or more of the model's windows. Joules of the GPU."""

    start: float
    """Seconds since the first window."""
    end: float
    measured: float
    predicted: float
    """Knowing the work and the busy time."""
    planned: float
    """Knowing the work alone."""
    held: int
    """Windows whose joules were in the predicted interval of 90 %."""
    windows: int
    whole: bool
    """No window was marked, as by traffic that passed the gateway by."""
    source: str


class Watch:
    """Sees the windows of one scheduler. Windows without energy or without a model are left out."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: of a span, about; windows are put together until they are as long."""
        self._seconds = seconds
        self.spans: list[Span] = []
        self._scheduler: Scheduler | None = None
        self._began: float | None = None
        self._open: list[Span] = []

    def attach(self, scheduler: Scheduler) -> None:
        """Listen; who listens already still does."""
        self._scheduler, before = scheduler, scheduler.energy.also

        def also(window: Window, *, simulated: bool) -> None:
            if before is not None:
                before(window, simulated=simulated)
            self._window(window)

        scheduler.energy.also = also

    def _window(self, window: Window) -> None:
        assert self._scheduler is not None
        learned = self._scheduler.energy.engines[window.engine].last_learned
        measured = window.energy.gpu
        if learned is None or measured is None:
            self._open = []
            return
        if self._began is None:
            self._began = window.start
        low, predicted, high = (
            learned.predicted.joules.low,
            learned.predicted.joules.value,
            learned.predicted.joules.high,
        )
        start, end = window.start - self._began, window.end - self._began
        one = Span(
            start, end, measured, predicted, learned.planned.joules.value, int(low <= measured <= high), 1,
            not window.why and not learned.marked, window.source,
        )  # fmt: skip
        self._open.append(one)
        if one.end - self._open[0].start >= self._seconds - NEARLY_SECONDS:
            self.spans.append(_together(self._open))
            self._open = []


def _together(spans: list[Span]) -> Span:
    return Span(
        spans[0].start, spans[-1].end,
        math.fsum(each.measured for each in spans), math.fsum(each.predicted for each in spans),
        math.fsum(each.planned for each in spans), sum(each.held for each in spans),
        len(spans), all(each.whole for each in spans), spans[0].source,
    )  # fmt: skip


def spans_of(path: Path, seconds: float = REPORT_SECONDS) -> list[Span]:
    """Of one event log, plain or gzipped. BenchError for a file that is none."""
    watch = Watch(seconds)
    try:
        with cast("TextIO", gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8")) as file:
            for _ in replay(file, watch.attach):
                pass
    except LogCut:
        pass  # the gateway was killed or its disk full: all before that counts
    except (OSError, EOFError, LogFault) as error:
        raise BenchError(f"{path}: {error}") from None
    return watch.spans


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `energy-log`."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="FILE", help="event logs, plain or .gz")
    parser.add_argument("--seconds", type=float, default=REPORT_SECONDS, metavar="S", help="of a span (default: 5)")
    parser.add_argument(
        "--after", type=float, default=SETTLED_SECONDS, metavar="S", help="leave out a log's first so many seconds"
    )


def run(args: argparse.Namespace) -> int:
    """Print a line a log and one of all. 0; 1 where no log has a span to tell of."""
    load_plugins()
    found = [(path, [each for each in spans_of(path, args.seconds) if each.start >= args.after]) for path in args.logs]
    for line in lines(found, args.seconds, args.after):
        print(line)
    return int(not any(spans for _, spans in found))


def lines(found: list[tuple[Path, list[Span]]], seconds: float, after: float) -> Iterator[str]:
    """The table."""
    width = max(len(path.name) for path, _ in found)
    yield f"{'':{width}}  spans  mean error  worst  bias    held  work alone  W"
    spans = [span for _, each in found for span in each]
    for name, those in [*((path.name, each) for path, each in found), ("all", spans)]:
        if not those:
            yield f"{name:{width}}  {0:5}  (no measured window later than {after:g} s)"
            continue
        errors = [span.predicted / span.measured - 1 for span in those]
        planned = [abs(span.planned / span.measured - 1) for span in those]
        held, windows = sum(span.held for span in those), sum(span.windows for span in those)
        watts = math.fsum(span.measured for span in those) / math.fsum(span.end - span.start for span in those)
        yield (
            f"{name:{width}}  {len(those):5}  {_mean(list(map(abs, errors))):10.2%}  {max(map(abs, errors)):5.1%}"
            f"  {_mean(errors):+5.1%}  {held / windows:5.1%}  {_mean(planned):10.2%}  {watts:.0f}"
        )
    sources = ", ".join(sorted({span.source for span in spans})) or "unavailable"
    marked = sum(not span.whole for span in spans)
    yield f"spans of {seconds:g} s from {after:g} s on; joules {sources}; {marked} have marked windows in them"


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
