"""The submitted workflows that are kept, running or over: each key sees its own, and there are limits to all of it."""

from __future__ import annotations

import hashlib
from time import time
from typing import TYPE_CHECKING, NamedTuple

from proxy.errors import RequestFault
from proxy.workflows.run import HeldBytes

if TYPE_CHECKING:
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.run import WorkflowRun


class _Entry(NamedTuple):
    run: WorkflowRun
    created_unix_seconds: float
    idempotency_key: str | None
    fingerprint: bytes


class RunTable:
    """By key and id. Ids of other keys are unknown here, and nothing says that they exist."""

    def __init__(self, config: WorkflowsConfig) -> None:
        self.config = config
        self.held = HeldBytes()
        self._entries: dict[tuple[str, str], _Entry] = {}
        """Oldest first."""
        self._by_idempotency: dict[tuple[str, str], _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def running(self) -> list[WorkflowRun]:
        """Those that are not over."""
        return [entry.run for entry in self._entries.values() if not entry.run.over]

    def get(self, key_name: str, run_id: str) -> WorkflowRun | None:
        """A run by its key and id."""
        entry = self._entries.get((key_name, run_id))
        return entry.run if entry is not None else None

    def created_unix_seconds(self, run: WorkflowRun) -> float:
        """When it was submitted."""
        return self._entries[run.key_name, run.id].created_unix_seconds

    def of_key(self, key_name: str) -> list[WorkflowRun]:
        """A key's runs, the latest first."""
        return [entry.run for (key, _), entry in reversed(self._entries.items()) if key == key_name]

    def same_submission(self, key_name: str, idempotency_key: str, body: bytes) -> WorkflowRun | None:
        """The run that an earlier submission with this idempotency key began. RequestFault 422: it was another body."""
        entry = self._by_idempotency.get((key_name, idempotency_key))
        if entry is None:
            return None
        if entry.fingerprint != hashlib.sha256(body).digest():
            message = "this Idempotency-Key came before with another body; use a key for one submission only"
            raise RequestFault(422, "idempotency_key_reused", message, param="idempotency-key")
        return entry.run

    def check_room(self, key_name: str, run_id: str) -> None:
        """Make room for one more. RequestFault 409 if the id is taken, 503 if there is none to be made."""
        if (key_name, run_id) in self._entries:
            message = f"there is a workflow {run_id!r} already; give another id, or none"
            raise RequestFault(409, "workflow_exists", message, param="id")
        self.shrink()
        if len(self._entries) >= self.config.submitted:
            message = f"{len(self._entries)} submitted workflows are running (workflows.submitted); try again later"
            raise RequestFault(503, "workflows_full", message)
        if self.held.count >= self.config.held_bytes:
            message = f"running workflows hold {self.held.count} bytes (workflows.held_bytes); try again later"
            raise RequestFault(503, "workflows_full", message)

    def add(self, run: WorkflowRun, idempotency_key: str | None, body: bytes) -> None:
        """Keep it from now on."""
        fingerprint = hashlib.sha256(body).digest() if idempotency_key is not None else b""
        entry = _Entry(run, time(), idempotency_key, fingerprint)
        self._entries[run.key_name, run.id] = entry
        if idempotency_key is not None:
            self._by_idempotency[run.key_name, idempotency_key] = entry

    def forget_old(self, now: float) -> None:
        """Drop what has been over for longer than `kept_seconds`. `now`: monotonic clock."""
        kept = self.config.kept_seconds
        for entry in list(self._entries.values()):
            finished_at = entry.run.finished_at
            if finished_at is not None and now - finished_at > kept:
                self._forget(entry)

    def shrink(self) -> None:
        """Drop the oldest that are over while there are too many, or too much is held."""
        config = self.config
        for entry in list(self._entries.values()):
            if len(self._entries) < config.submitted and self.held.count < config.held_bytes:
                return
            if entry.run.over:
                self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        run = entry.run
        del self._entries[run.key_name, run.id]
        if entry.idempotency_key is not None:
            self._by_idempotency.pop((run.key_name, entry.idempotency_key), None)
        run.release()
