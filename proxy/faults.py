"""A fault of our own: told, counted, and kept from spreading. Nothing is swallowed silently."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ALIKE_MAX = 256

_log = logging.getLogger("joulegate")


class Faults:
    """Where code that must go on reports what it caught."""

    def __init__(self, log_event: Callable[..., None]) -> None:
        self.count = 0
        self._log_event = log_event
        self._told: set[tuple[str, str]] = set()

    def report(self, where: str, error: BaseException, **fields: object) -> None:
        """One line in the log each time; the traceback on standard error once for each kind, since it can come with
        every call."""
        self.count += 1
        what = repr(error)
        kind = (where, what)
        if kind not in self._told and len(self._told) < ALIKE_MAX:
            self._told.add(kind)
            _log.error("%s failed", where, exc_info=error)
        self._log_event("internal_error", where=where, detail=what, **fields)
