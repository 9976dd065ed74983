"""What did calls and windows of the last minute say? Gathers a view's load and answers, in bounded memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from scheduler.energy.caps.answers import Answers
from scheduler.energy.caps.view import Load
from scheduler.energy.work import NOTHING

if TYPE_CHECKING:
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.window import Window

CALLS_MAX = 16_384
"""Calls under way; of further ones nothing is learned."""
OUTPUT_LEAST = 16
"""A shorter answer has too few gaps for a mean."""


class Recent:
    """One engine's. Call events cost about 1 µs. Times in seconds of the events' clock; limits in watts of all GPUs."""

    def __init__(self, rules: CapRules) -> None:
        self.rules = rules
        self._calls: dict[str, tuple[float, float | None, bool]] = {}
        """Call → (sent at, first token at, its answer comes as a stream)."""
        self.ttft = Answers(rules.ttft_seconds_p95, rules.horizon_seconds, rules.danger_seconds)
        self.itl = Answers(rules.itl_seconds_p95, rules.horizon_seconds, rules.danger_seconds)
        self._windows: deque[Window] = deque(maxlen=256)

    def sent(self, call_id: str, now: float, *, streamed: bool = True) -> None:
        """A call was given to the engine (again: it is tried once more)."""
        if len(self._calls) < CALLS_MAX:
            self._calls[call_id] = (now, None, streamed)

    def first_token(self, call_id: str, now: float, limit_watts: float) -> None:
        """The first event of a stream. Of an answer that comes whole nothing is noted: that is no first token."""
        call = self._calls.get(call_id)
        if call is not None and call[1] is None and call[2]:
            self._calls[call_id] = (call[0], now, True)
            self.ttft.add(now, now - call[0], limit_watts)

    def finished(self, call_id: str, output_tokens: int | None, now: float, limit_watts: float) -> None:
        """Its answer is complete. Where it did not stream, all of its time counts as gaps: more than there were."""
        call = self._calls.pop(call_id, None)
        if call is None or output_tokens is None or output_tokens < OUTPUT_LEAST:
            return
        sent, first, _ = call
        gaps = output_tokens if first is None else output_tokens - 1
        self.itl.add(now, (now - (sent if first is None else first)) / gaps, limit_watts)

    def gone(self, call_id: str) -> None:
        """It ended without an answer."""
        self._calls.pop(call_id, None)

    def window(self, window: Window) -> None:
        """One that is whole; others are not looked at."""
        if window.whole:
            self._windows.append(window)

    @property
    def last_window_end(self) -> float | None:
        """Of the last whole one."""
        return self._windows[-1].end if self._windows else None

    def load(self, now: float) -> Load | None:
        """Of the windows that ended within the last `load_seconds`; None: there is none, or no limit is known."""
        windows, since = self._windows, now - self.rules.load_seconds
        while windows and windows[0].end <= since:
            windows.popleft()
        work, seconds, busy, limit = NOTHING, 0.0, 0.0, 0.0
        for window in windows:
            if window.limit_watts is None:
                return None
            work += window.work + window.correction
            seconds += window.seconds
            busy += window.busy_seconds
            limit += window.limit_watts * window.seconds
        if seconds <= 0:
            return None
        # Corrections may be negative; of steps there is at least the engine's own count.
        work = work._replace(**{name: max(value, 0.0) for name, value in work._asdict().items()})
        return Load(work, seconds, min(busy, seconds), limit / seconds)
