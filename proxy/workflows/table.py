"""The submitted workflows that are kept, running or over: each key sees its own, and there are limits to all of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from proxy.errors import RequestFault
from proxy.workflows.run import HeldBytes

if TYPE_CHECKING:
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.run import WorkflowRun

NO_KEYS = "-"
"""The key's name where none are configured: all that there is, is its own."""


class _Before(NamedTuple):
    """A submission that came with an idempotency key."""

    run_id: str
    fingerprint: bytes


class RunTable:
    """By key and id. Ids of other keys are unknown here, and nothing says that they exist."""

    def __init__(self, config: WorkflowsConfig) -> None:
        self.config = config
        self.held = HeldBytes()
        self._runs: dict[tuple[str, str], WorkflowRun] = {}
        self._over: dict[str, OrderedDict[str, None]] = {}
        """By key the ids of those that are over, in the order in which they ended."""
        self._before: OrderedDict[tuple[str, str], _Before] = OrderedDict()
        """By key and idempotency key, oldest first."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def running(self) -> list[WorkflowRun]:
        """Those that are not over."""
        return [run for run in self._runs.values() if not run.over]

    def get(self, key_name: str, run_id: str) -> WorkflowRun | None:
        """A run by its key and id."""
        return self._runs.get((key_name, run_id))

    # --- the same submission again ---

    def same_submission(self, key_name: str, idempotency_key: str, body: bytes) -> str | None:
        """The id of what an earlier submission with this idempotency key began; it may have been forgotten since.
        RequestFault 422: it was another body."""
        before = self._before.get((key_name, idempotency_key))
        if before is None:
            return None
        if before.fingerprint != hashlib.sha256(body).digest():
            message = "this Idempotency-Key came before with another body; use a key for one submission only"
            raise RequestFault(422, "idempotency_key_reused", message, param="idempotency-key")
        return before.run_id

    def remember(self, key_name: str, idempotency_key: str | None, run_id: str, body: bytes) -> None:
        """What this submission began."""
        if idempotency_key is None:
            return
        self._before[key_name, idempotency_key] = _Before(run_id, hashlib.sha256(body).digest())
        self._before.move_to_end((key_name, idempotency_key))
        while len(self._before) > 2 * self.config.submitted:
            self._before.popitem(last=False)

    # --- room ---

    def check_id(self, key_name: str, run_id: str) -> None:
        """RequestFault 409 if the id is taken."""
        if (key_name, run_id) in self._runs:
            message = f"there is a workflow {run_id!r} already; give another id, or none"
            raise RequestFault(409, "workflow_exists", message, param="id")

    def check_room(self, key_name: str, run_id: str) -> None:
        """Make room for one more. RequestFault 409 if the id is taken, 503 if there is none to be made."""
        self.check_id(key_name, run_id)
        self.shrink()
        count, most = len(self._runs), self.config.submitted
        if count >= most:
            raise _full(f"{count} submitted workflows are running (workflows.submitted)")
        held, held_most = self.held.count, self.config.held_bytes
        if held >= held_most:
            raise _full(f"running workflows hold {held} bytes (workflows.held_bytes)")
        if key_name != NO_KEYS and (count * 2 >= most or held * 2 >= held_most):
            self._check_share(key_name)

    def _check_share(self, key_name: str) -> None:
        """One API key may have half of the room: what it runs must not keep all others out."""
        mine = [run for run in self.running if run.key_name == key_name]
        if len(mine) * 2 >= self.config.submitted:
            raise _full(f"{len(mine)} workflows of this API key are running (half of workflows.submitted)")
        held = sum([run.held_bytes for run in mine])
        if held * 2 >= self.config.held_bytes:
            raise _full(f"running workflows of this API key hold {held} bytes (half of workflows.held_bytes)")

    def add(self, run: WorkflowRun) -> None:
        """Keep it from now on."""
        self._runs[run.key_name, run.id] = run

    def ended(self, run: WorkflowRun) -> None:
        """It is over, and goes when there is no room, or when it has been kept long enough."""
        if self._runs.get((run.key_name, run.id)) is run:
            self._over.setdefault(run.key_name, OrderedDict())[run.id] = None
        self.shrink()

    def forget_old(self, now: float) -> None:
        """Drop what has been over for longer than `kept_seconds`. `now`: monotonic clock."""
        for key_name, ids in list(self._over.items()):
            for run_id in list(ids):
                finished_at = self._runs[key_name, run_id].finished_at
                if finished_at is not None and now - finished_at <= self.config.kept_seconds:
                    break
                self._forget(key_name, run_id)

    def shrink(self) -> None:
        """While there are too many, or too much is held: drop the oldest that is over, of the key that has most."""
        config = self.config
        while self._over and (len(self._runs) >= config.submitted or self.held.count >= config.held_bytes):
            key_name = max(self._over, key=lambda name: len(self._over[name]))
            self._forget(key_name, next(iter(self._over[key_name])))

    def _forget(self, key_name: str, run_id: str) -> None:
        self._runs.pop((key_name, run_id)).release()
        ids = self._over[key_name]
        del ids[run_id]
        if not ids:
            del self._over[key_name]


def _full(message: str) -> RequestFault:
    return RequestFault(503, "workflows_full", f"{message}; try again later", retry_after_seconds=1.0)
