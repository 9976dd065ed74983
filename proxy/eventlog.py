"""Writes the scheduler's event log to a file: what happened and what was decided, for `joulegate replay`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from scheduler.eventlog import event_line, head_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scheduler.actions import Action
    from scheduler.core import SchedulerConfig
    from scheduler.events import Event


class EventLogWriter:
    """One line an event, through the file's own buffer. Meant for the time of an inquiry, not for ever: it grows by
    about 600 bytes a call, and stops at `max_bytes`, saying so in its last line.

    It stops as well when the file cannot be written (a full disk), and tells `stopped` why, once: a log must not cost
    calls. What is in the file then replays; its last line may be cut.
    """

    def __init__(
        self, path: Path, config: SchedulerConfig, now: float, max_bytes: int, stopped: Callable[[str], None]
    ) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1 << 16)
        self._left = max_bytes
        self._stopped = stopped
        self._write(head_line(config, now))

    def write(self, event: Event, now: float, actions: Sequence[Action]) -> None:
        """Add one event."""
        if self._left > 0:
            self._write(event_line(event, now, actions))

    def _write(self, line: str) -> None:
        self._left -= len(line) + 1
        try:
            self._file.write(line + "\n")
            if self._left <= 0:
                self._file.write('{"joulegate_event_log_full": true}\n')
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        """Write what is buffered."""
        try:
            self._file.close()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._left = 0
        with contextlib.suppress(
            OSError
        ):  # what is buffered cannot be written either; the descriptor closes all the same
            self._file.close()
        self._stopped(str(error))
