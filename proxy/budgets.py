"""Budgets over a restart, of tokens and of joules: small files in the state directory, written whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import orjson

from scheduler.events import BudgetsRestored, JouleBudgetsRestored

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "budgets.json"
JOULES_FILE_NAME = "energy-budgets.json"

Budgets = tuple[tuple[str, int, float], ...] | tuple[tuple[str, float, float], ...]
"""(key, used tokens or joules, seconds until the period ends) each, as the scheduler says it."""


class BudgetsFault(Exception):
    """The file cannot be used; the message says why and what to do."""


class BudgetsFile:
    """Writes what the keys have used, if it has changed. May be used by several threads, one after the other."""

    def __init__(self, directory: Path, name: str = FILE_NAME) -> None:
        self._directory = directory
        self._name = name
        self._saved: object = None
        self._one_at_a_time = threading.Lock()

    def save(self, budgets: Budgets, now: float) -> bool:
        """Write them; whether there was anything to write. `now` as the scheduler's clock says it. OSError if the
        directory cannot be written: then they count as not saved."""
        with self._one_at_a_time:
            # A period's end is said as the time until then, which changes by itself.
            content = [(key, used, round(now + ends_in_seconds)) for key, used, ends_in_seconds in budgets]
            if not budgets or content == self._saved:
                return False
            self._write(budgets)
            self._saved = content
            return True

    def _write(self, budgets: Budgets) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / self._name
        fresh = path.with_suffix(".new")
        data = orjson.dumps({"saved_unix_seconds": time.time(), "budgets": budgets})
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


def load(directory: Path) -> BudgetsRestored | None:
    """The event that brings an earlier process's use back; None if there was none. Raises BudgetsFault."""
    found = _read(directory / FILE_NAME, "token budgets")
    return None if found is None else BudgetsRestored(tuple([(key, int(used), ends) for key, used, ends in found]))


def load_joules(directory: Path) -> JouleBudgetsRestored | None:
    """The same for joules."""
    found = _read(directory / JOULES_FILE_NAME, "budgets of joules")
    return None if found is None else JouleBudgetsRestored(found)


def _read(path: Path, what: str) -> tuple[tuple[str, float, float], ...] | None:
    try:
        saved = orjson.loads(path.read_bytes())
        passed = max(0.0, time.time() - saved["saved_unix_seconds"])
        return tuple((str(key), float(used), float(ends) - passed) for key, used, ends in saved["budgets"])
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BudgetsFault(f"{path} cannot be read ({error}); mend it, or remove it to start all {what} anew") from None
