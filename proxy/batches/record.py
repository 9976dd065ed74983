"""What is known of each batch: what was asked for, how far it is, how it ended."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from proxy.batches import sidefiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.batches.config import BatchesConfig

STATES = ("validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
UNFINISHED = frozenset(("validating", "in_progress", "finalizing", "cancelling"))
RESULT_SUFFIXES = (".output", ".errors")
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(slots=True)
class Usage:
    """Tokens of all answers so far."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Count another's too."""
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens

    def shown(self) -> dict[str, Any]:
        """As the API says it."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(slots=True)
class Batch:
    """One batch. Counts and usage are saved when it ends; until then its results on the disk are what counts."""

    id: str
    key_name: str
    endpoint: str
    input_file_id: str
    created_at: float
    expires_at: float
    output_seconds: float
    """How long its results are kept."""
    output_id: str
    error_id: str
    """Of its results, chosen at its beginning: making files of them can be done twice and comes out once."""
    metadata: dict[str, str] | None = None
    status: str = "validating"
    ending: str = ""
    """What `finalizing` leads to."""
    times: dict[str, int] = field(default_factory=dict)
    """When each state began."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Why it failed."""
    model: str | None = None
    last_line: int = 0
    """Lines of the file, blank ones included."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)
    has_output: bool = False
    has_errors: bool = False

    def turn(self, status: str, now: float) -> None:
        """It is in another state."""
        self.status = status
        self.times[status] = int(now)

    @property
    def unfinished(self) -> bool:
        """It is still being worked on."""
        return self.status in UNFINISHED

    def shown(self) -> dict[str, Any]:
        """As the API says it."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_id if self.has_output else None,
            "error_file_id": self.error_id if self.has_errors else None,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            **{f"{name}_at": self.times.get(name) for name in _TIMES},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage.shown(),
            "metadata": self.metadata,
        }


def new_id() -> str:
    """The id of a batch to be."""
    return f"batch_{secrets.token_hex(12)}"


class BatchTable:
    """All batches that are remembered, oldest first."""

    def __init__(self, folder: Path, config: BatchesConfig) -> None:
        self.folder = folder
        self._config = config
        self._batches: dict[str, Batch] = {}
        self._one_at_a_time = asyncio.Lock()

    def find(self, key_name: str, batch_id: str) -> Batch | None:
        """A key's batch; None for another key's, as if it did not exist."""
        batch = self._batches.get(batch_id)
        return batch if batch is not None and batch.key_name == key_name else None

    def of_key(self, key_name: str) -> list[Batch]:
        """A key's batches, oldest first."""
        return [batch for batch in self._batches.values() if batch.key_name == key_name]

    def unfinished(self) -> list[Batch]:
        """Batches that are worked on, oldest first."""
        return [batch for batch in self._batches.values() if batch.unfinished]

    def by_state(self) -> dict[str, int]:
        """How many there are in each state."""
        counts = dict.fromkeys(STATES, 0)
        for batch in self._batches.values():
            counts[batch.status] += 1
        return counts

    def load(self, bad: Callable[[Path, Exception], None]) -> None:
        """Read what an earlier process left; waits for the disk."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for value in sidefiles.read_all(self.folder, bad):
            try:
                found.append(Batch(**{**value, "usage": Usage(**value["usage"])}))
            except (TypeError, KeyError) as error:
                bad(self.folder / f"{value['id']}{sidefiles.SUFFIX}", error)
        self._batches = {batch.id: batch for batch in sorted(found, key=lambda batch: batch.created_at)}
        for path in self.folder.glob("batch_*"):  # results of what has ended or is forgotten
            batch = self._batches.get(path.stem)
            over = not path.with_suffix(sidefiles.SUFFIX).exists() if batch is None else not batch.unfinished
            if path.suffix in RESULT_SUFFIXES and over:  # not of one that could not be read: somebody may mend it
                path.unlink()

    async def add(self, batch: Batch) -> None:
        """A new one. OSError: then there is none."""
        self._batches[batch.id] = batch  # before waiting: it counts from now on
        try:
            await self.save(batch)
        except OSError:
            del self._batches[batch.id]
            raise

    async def save(self, batch: Batch) -> None:
        """Put it on the disk as it is now. OSError."""
        async with self._one_at_a_time:  # so that the last one written is the newest
            await asyncio.to_thread(sidefiles.write, self._side(batch), orjson.dumps(asdict(batch)))

    async def sweep(self, now: float) -> None:
        """Forget finished batches that are old, or too many. OSError."""
        seen: dict[str, int] = {}
        for batch in reversed(list(self._batches.values())):
            if batch.unfinished:
                continue
            seen[batch.key_name] = seen.get(batch.key_name, 0) + 1
            old = now > max(batch.times.values(), default=0) + self._config.keep_seconds
            if old or seen[batch.key_name] > self._config.key_batches_kept:
                del self._batches[batch.id]
                await asyncio.to_thread(self._side(batch).unlink, missing_ok=True)

    def _side(self, batch: Batch) -> Path:
        return self.folder / f"{batch.id}{sidefiles.SUFFIX}"
