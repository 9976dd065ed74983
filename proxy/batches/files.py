"""Which files does each key have, and where do their bytes lie?"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxy.batches import sidefiles
from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from proxy.batches.config import BatchesConfig

DATA_SUFFIX = ".data"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file: an input that was uploaded, or a batch's results."""

    id: str
    key_name: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float

    def shown(self) -> dict[str, Any]:
        """As the API says it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


def new_id() -> str:
    """The id of a file to be."""
    return f"file-{secrets.token_hex(12)}"


class FileStore:
    """All files, oldest first. One that is not whole is not there: its side file is written last and removed first."""

    def __init__(self, folder: Path, config: BatchesConfig) -> None:
        self._folder = folder
        self._config = config
        self._files: dict[str, StoredFile] = {}
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._bytes: defaultdict[str, int] = defaultdict(int)
        """On disk or about to be, by key; results that still grow are counted too (`charge`)."""

    # --- questions ---

    @property
    def bytes_total(self) -> int:
        """Of all files and results."""
        return sum(self._bytes.values())

    def __len__(self) -> int:
        return len(self._files)

    def find(self, key_name: str, file_id: str) -> StoredFile | None:
        """A key's file; None for another key's, as if it did not exist."""
        file = self._files.get(file_id)
        return file if file is not None and file.key_name == key_name else None

    def of_key(self, key_name: str) -> list[StoredFile]:
        """A key's files, oldest first."""
        return [file for file in self._files.values() if file.key_name == key_name]

    def path(self, file_id: str) -> Path:
        """Where a file's bytes lie."""
        return self._folder / f"{file_id}{DATA_SUFFIX}"

    def room(self, key_name: str) -> int:
        """Bytes that a key may still store."""
        config = self._config
        return min(config.key_bytes - self._bytes[key_name], config.total_bytes - self.bytes_total)

    # --- changes ---

    def charge(self, key_name: str, count: int) -> None:
        """Bytes of a key that have come to lie on the disk, or are gone from it."""
        self._bytes[key_name] += count
        assert self._bytes[key_name] >= 0

    def load(self, bad: Callable[[Path, Exception], None]) -> None:
        """Read what an earlier process left; waits for the disk."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for value in sidefiles.read_all(self._folder, bad):
            try:
                found.append(StoredFile(**value))
            except TypeError as error:
                bad(self._folder / f"{value['id']}{sidefiles.SUFFIX}", error)
        for file in sorted(found, key=lambda file: file.created_at):
            path = self.path(file.id)
            if not path.exists():  # half made or half removed
                path.with_suffix(sidefiles.SUFFIX).unlink()
                continue
            self._files[file.id] = file
            self._counts[file.key_name] += 1
            self._bytes[file.key_name] += file.bytes
        for path in self._folder.glob(f"*{DATA_SUFFIX}"):
            if not path.with_suffix(sidefiles.SUFFIX).exists():
                path.unlink()

    async def add(self, file: StoredFile, data: memoryview) -> None:
        """Keep a new file. RequestFault if the key may not have it, OSError if the disk does not take it."""
        if self._counts[file.key_name] >= self._config.key_files:
            message = f"this API key has {self._config.key_files} files (batches.key_files); delete some"
            raise RequestFault(413, "too_many_files", message, param="file")
        if len(data) > self.room(file.key_name):
            message = "no room is left for this file (batches.key_bytes, batches.total_bytes); delete some"
            raise RequestFault(413, "storage_full", message, param="file")
        self._counts[file.key_name] += 1  # before waiting, so that two at once cannot both have the last place
        self.charge(file.key_name, len(data))
        try:
            await asyncio.to_thread(self._write, file, data)
        except BaseException:
            self._counts[file.key_name] -= 1
            self.charge(file.key_name, -len(data))
            raise
        self._files[file.id] = file

    async def adopt(self, file: StoredFile, path: Path) -> None:
        """Make results that lie at `path`, whose bytes are counted already, a file. OSError."""
        await asyncio.to_thread(self._adopt, file, path)
        self._files[file.id] = file
        self._counts[file.key_name] += 1

    async def remove(self, file: StoredFile) -> None:
        """Delete a file. OSError if that cannot be: then it is still there."""
        if self._files.pop(file.id, None) is None:
            return
        try:
            await asyncio.to_thread(self._unlink, file.id)
        except OSError:
            self._files[file.id] = file
            raise
        self._counts[file.key_name] -= 1
        self.charge(file.key_name, -file.bytes)

    async def sweep(self, now: float, in_use: Collection[str]) -> None:
        """Delete what has expired and is not in use. OSError."""
        for file in [file for file in self._files.values() if file.expires_at <= now and file.id not in in_use]:
            await self.remove(file)

    # --- on the disk ---

    def _side(self, file_id: str) -> Path:
        return self._folder / f"{file_id}{sidefiles.SUFFIX}"

    def _write(self, file: StoredFile, data: memoryview) -> None:
        path = self.path(file.id)
        try:
            sidefiles.write_through(path, data)  # before its side file: a power cut must not leave half of it
            sidefiles.write(self._side(file.id), orjson.dumps(asdict(file)))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def _adopt(self, file: StoredFile, path: Path) -> None:
        # In this order: a crash between the two leaves the results where they are, and the next process begins anew.
        sidefiles.write(self._side(file.id), orjson.dumps(asdict(file)))
        path.replace(self.path(file.id))

    def _unlink(self, file_id: str) -> None:
        self._side(file_id).unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)
