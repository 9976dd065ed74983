"""Writes the scheduler's event log to a file: what happened and what was decided, for `joulegate replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.eventlog import event_line, head_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scheduler.actions import Action
    from scheduler.core import SchedulerConfig
    from scheduler.events import Event


class EventLogWriter:
    """One line an event, through the file's own buffer. Meant for the time of an inquiry, not for ever: it grows by
    about 600 bytes a call, and stops at `max_bytes`, saying so in its last line."""

    def __init__(self, path: Path, config: SchedulerConfig, now: float, max_bytes: int) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1 << 16)
        self._left = max_bytes
        self._write(head_line(config, now))

    def write(self, event: Event, now: float, actions: Sequence[Action]) -> None:
        """Add one event."""
        if self._left > 0:
            self._write(event_line(event, now, actions))

    def _write(self, line: str) -> None:
        self._left -= len(line) + 1
        self._file.write(line + "\n")
        if self._left <= 0:
            self._file.write('{"joulegate_event_log_full": true}\n')

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()
