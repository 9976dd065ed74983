"""Token budgets over a restart: a small file in the state directory, written whole or not at all."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import orjson

from scheduler.events import BudgetsRestored

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "budgets.json"


class BudgetsFault(Exception):
    """The file cannot be used; the message says why and what to do."""


def save(directory: Path, budgets: tuple[tuple[str, int, float], ...]) -> None:
    """Write what the keys have used. OSError if the directory cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
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
