"""Token budgets over a restart: a small file in the state directory, written whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import orjson

from scheduler.events import BudgetsRestored

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "budgets.json"

Budgets = tuple[tuple[str, int, float], ...]
"""(key, used tokens, seconds until the period ends) each, as the scheduler says it."""


class BudgetsFault(Exception):
    """The file cannot be used; the message says why and what to do."""


class BudgetsFile:
    """Writes what the keys have used, if it has changed. May be used by several threads, one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
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
        path = self._directory / FILE_NAME
        fresh = path.with_suffix(".new")
        data = orjson.dumps({"saved_unix_seconds": time.time(), "budgets": budgets})
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


def load(directory: Path) -> BudgetsRestored | None:
    """The event that brings an earlier process's use back; None if there was none. Raises BudgetsFault."""
    path = directory / FILE_NAME
    try:
        saved = orjson.loads(path.read_bytes())
        passed = max(0.0, time.time() - saved["saved_unix_seconds"])
        return BudgetsRestored(
            tuple((str(key), int(used), float(ends) - passed) for key, used, ends in saved["budgets"])
        )
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BudgetsFault(
            f"{path} cannot be read ({error}); mend it, or remove it to start all token budgets anew"
        ) from None
