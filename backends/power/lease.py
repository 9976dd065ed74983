"""Who may set a card's limit? One writer, ever, on one host.

A folder has two files for each card. `CARD.lock` is locked by whoever sets the limit, with flock: the kernel lets go
of it when the last process that holds it has ended, however it ended. In it stands the fencing token, which grows with
each writer and is never reset. `CARD.json` is the lease: what was found before the first change, and every value that
may be ours. It is written, to the disk, before the card is touched, and removed when the card is as it was found. A
lease whose lock is free is an orphan.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import time
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

LEASE_BYTES_MAX = 65_536
NAME_CHARS = 80
LOOK_SECONDS = 0.005


class LeaseFault(Exception):
    """The lease cannot be had. The message says why and the way out."""


class LeaseHeld(LeaseFault):
    """Somebody else sets this card's limit."""


class Record(NamedTuple):
    """What stands in a lease."""

    device: str
    """the card's identity"""
    label: str
    """what the configuration calls it"""
    spec: dict[str, Any]
    """how another process opens it"""
    token: int
    snapshot_watts: float | None
    """the limit that was found. None: the limit has not been changed"""
    ours_watts: tuple[float, ...]
    """what the limit may be if nobody but us has changed it"""
    clock_locked: bool
    pid: int
    host: str
    at: float
    """wall clock of the first change"""


def default_folder() -> Path:
    """Where leases lie if nothing is configured: all writers of a host must use the same folder. LeaseFault."""
    if os.geteuid() == 0:
        return Path("/run/joulegate/power")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "joulegate" / "power"
    raise LeaseFault("no folder for leases: set power.lease_dir to one that all gateways of this host use")


def open_folder(folder: Path) -> Path:
    """Make it, for its owner only. LeaseFault if others could write there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise LeaseFault(f"the folder of leases, {folder}: {error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o022:
        raise LeaseFault(f"{folder}: others may write there, and could have limits restored as they like; chmod 700 it")
    return folder


def file_name(device: str) -> str:
    """A file's name for an identity, whatever stands in it."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", device)[:NAME_CHARS].lstrip(".")
    return plain if plain == device else f"{plain}-{sha256(device.encode()).hexdigest()[:12]}"


class Lease:
    """A card's lease, held by this process until `release`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.file = folder / f"{file_name(device)}.json"
        self._lock_file = folder / f"{file_name(device)}.lock"
        self.device = device
        self.fd = -1
        """of the locked file; a watchdog gets a copy, so that the lock lasts until it has restored"""
        self.token = 0

    @classmethod
    def of_file(cls, file: Path) -> Lease:
        """The lease that lies in this file."""
        lease = cls(file.parent, "")
        lease.file, lease._lock_file = file, file.with_suffix(".lock")
        return lease

    def acquire(self) -> None:
        """Take the lock and the next fencing token. LeaseHeld, LeaseFault."""
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LeaseFault(f"{self._lock_file}: {error.strerror}") from None
        try:
            _lock(fd)
            last = os.pread(fd, 32, 0).strip()
            self.token = (int(last) if last.isdigit() else 0) + 1
            os.pwrite(fd, b"%-31d\n" % self.token, 0)
            os.fsync(fd)
        except BlockingIOError:
            os.close(fd)
            raise LeaseHeld(f"{self.device or self.file.stem}: {self._holder()} sets its limit") from None
        except OSError as error:
            os.close(fd)
            raise LeaseFault(f"{self._lock_file}: {error.strerror}") from None
        self.fd = fd

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self.fd >= 0

    def write(self, record: Record) -> None:
        """To the disk, whole or not at all. LeaseFault."""
        assert self.held
        data = json.dumps(record._asdict()).encode()
        assert len(data) <= LEASE_BYTES_MAX
        partial = self.file.with_suffix(".partial")
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            partial.replace(self.file)
            self._sync_folder()
        except OSError as error:
            raise LeaseFault(f"{self.file}: {error.strerror}; the limit is left as it is") from None

    def read(self) -> Record | None:
        """What stands in it; None if there is none. LeaseFault if it cannot be understood."""
        try:
            with self.file.open("rb") as opened:
                data = opened.read(LEASE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LeaseFault(f"{self.file}: {error.strerror}") from None
        try:
            fields = json.loads(data)
            fields["ours_watts"] = tuple(map(float, fields["ours_watts"]))
            record = Record(**fields)
        except (ValueError, TypeError, KeyError):
            raise LeaseFault(f"{self.file}: not a lease; look at the card and remove the file") from None
        return record

    def remove(self) -> None:
        """The card is as it was found."""
        with contextlib.suppress(FileNotFoundError):
            self.file.unlink()
            self._sync_folder()

    def is_locked(self) -> bool:
        """Whether somebody holds it now. Takes no token. LeaseFault where that cannot be asked."""
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise LeaseFault(f"{self._lock_file}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """Let others set the limit."""
        if self.held:
            os.close(self.fd)
            self.fd = -1

    def _sync_folder(self) -> None:
        fd = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _holder(self) -> str:
        with contextlib.suppress(LeaseFault):
            if (record := self.read()) is not None:
                return f"process {record.pid} on {record.host}"
        return "another process"


def _lock(fd: int) -> None:
    """BlockingIOError if somebody holds it. One who only looks (`is_locked`) has it for a moment too."""
    for last in (False, False, True):
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                raise
            time.sleep(LOOK_SECONDS)
    return None


def new_record(device: str, label: str, spec: dict[str, Any], token: int) -> Record:
    """Of a card that has not been changed yet."""
    return Record(device, label, spec, token, None, (), False, os.getpid(), socket.gethostname(), time.time())


def leases(folder: Path) -> list[Lease]:
    """Those that lie in the folder, held or orphaned."""
    return [Lease.of_file(file) for file in sorted(folder.glob("*.json"))]
