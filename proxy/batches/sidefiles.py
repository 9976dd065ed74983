"""Small JSON files beside the data that they describe: written whole or not at all.

There is no database: what is known of files and batches is small, bounded and held in memory, where every question is
answered; the disk only has to bring it back after a restart. A file for each is that, and can be read by eye.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUFFIX = ".json"
_FRESH_SUFFIX = ".new"


def write(path: Path, data: bytes) -> None:
    """Replace the file; a crash leaves the old one or the new one. OSError."""
    fresh = path.with_suffix(_FRESH_SUFFIX)
    try:
        write_through(fresh, data)
        fresh.replace(path)
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def write_through(path: Path, data: bytes | memoryview) -> None:
    """Write a file, and see that it is on the disk: also after a power cut. OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The names of its files are on the disk too."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_all(folder: Path, bad: Callable[[Path, Exception], None]) -> Iterator[dict[str, Any]]:
    """What the files of a folder hold; those that cannot be read are told to `bad` and left where they are.

    What a crash left half written goes.
    """
    for path in folder.glob(f"*{_FRESH_SUFFIX}"):
        path.unlink(missing_ok=True)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            value = orjson.loads(path.read_bytes())
            if not isinstance(value, dict) or value.get("id") != path.stem:
                raise ValueError(f"it does not describe {path.stem}")
        except (OSError, ValueError) as error:
            bad(path, error)
            continue
        yield value
