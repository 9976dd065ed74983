"""The call log: one JSON line a call, written by a thread of its own so that a slow disk or pipe holds nobody up."""

from __future__ import annotations

import os
import queue
import sys
import threading
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from proxy.call import Call

FLUSH_BYTES = 65_536
TEXT_MAX = 512
"""Characters of a value that a client chose."""
EVENTS_PER_SECOND = 100
"""Lines that are no calls; more are counted and summed up in one."""
CLOSE_SECONDS = 5.0


class CallLog:
    """Lines are gathered and handed to the writer by `flush` and at 64 KiB. At most `buffer_bytes` wait for it; further
    lines are dropped and counted in `lines_dropped`. `path` "-" is standard output. OSError if a file cannot be opened."""

    def __init__(self, path: str, *, buffer_bytes: int, prompts: bool) -> None:
        self._path = path
        self._prompts = prompts
        self._buffer_bytes = buffer_bytes
        self._lines: list[bytes] = []
        self._line_bytes = 0
        # Each of these has one writer: the event loop the first two, the thread the others.
        self._lines_refused = self._bytes_handed = 0
        self._lines_lost = self._bytes_written = 0
        self._events_at = 0
        self._events = 0
        self._batches: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._reopen = threading.Event()
        self._file = self._open()
        self._writer = threading.Thread(target=self._write_on, name="call-log", daemon=True)
        self._writer.start()

    def write(self, call: Call) -> None:
        """One line for a call that has ended."""
        identity = call.identity
        arrived_at = call.arrived_at
        finished_at = call.finished_at or arrived_at
        line: dict[str, Any] = {
            "ts": _timestamp(call.arrived_unix_seconds),
            "event": "call",
            "id": call.id,
            "request_id": call.request_id,
            "key": call.key_name,
            "method": call.method[:TEXT_MAX],
            "path": call.path[:TEXT_MAX],
            "route": call.route,
            "model": call.model[:TEXT_MAX] if call.model else None,
            "stream": call.stream,
            "workflow": {"id": identity.workflow_id or call.id, "node": identity.node, "source": identity.source},
            "policy": call.policy,
            "engine": call.engine,
            "attempts": call.attempts,
            "status": call.status,
            "outcome": call.outcome,
            "reason": call.reason,
            "prompt_tokens": call.prompt_tokens,
            "cached_tokens": call.cached_tokens,
            "output_tokens": call.output_tokens,
            "held_ms": _ms(call.dispatched_at, arrived_at),
            "ttft_ms": _ms(call.first_byte_at, arrived_at),
            "duration_ms": _ms(finished_at, arrived_at),
            "overhead_us": round(call.overhead_seconds * 1e6),
            "request_bytes": call.request_bytes,
            "response_bytes": call.response_bytes,
        }
        if self._prompts and call.prompt_text is not None:
            line["prompt"] = call.prompt_text.decode("utf-8", "replace")
        self._add(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def event(self, kind: str, **fields: Any) -> None:
        """A line that is no call: an engine up or down, a reload, a failed attempt."""
        second = int(monotonic())
        if second != self._events_at:
            missed = self._events - EVENTS_PER_SECOND
            self._events_at, self._events = second, 0
            if missed > 0:
                self.event("events_left_out", count=missed)
        self._events += 1
        if self._events > EVENTS_PER_SECOND:
            return
        shown = {key: value[:TEXT_MAX] if isinstance(value, str) else value for key, value in fields.items()}
        line = {"ts": _timestamp(time()), "event": kind, **shown}
        self._add(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE, default=str))

    @property
    def lines_dropped(self) -> int:
        """Lines that were never written."""
        return self._lines_refused + self._lines_lost

    def flush(self) -> None:
        """Hand what has been gathered to the writer; the gateway does so a few times a second."""
        if self._lines:
            self._bytes_handed += self._line_bytes
            self._batches.put(self._lines)
            self._lines, self._line_bytes = [], 0

    def reopen(self) -> None:
        """Open the file anew: it was moved away by a log rotation."""
        self._reopen.set()

    def close(self) -> None:
        """Write everything, waiting for a stuck reader no longer than CLOSE_SECONDS."""
        self.flush()
        self._batches.put(None)
        self._writer.join(CLOSE_SECONDS)

    def _add(self, line: bytes) -> None:
        waiting = self._line_bytes + self._bytes_handed - self._bytes_written
        if waiting + len(line) > self._buffer_bytes:
            self._lines_refused += 1
            return
        self._lines.append(line)
        self._line_bytes += len(line)
        if self._line_bytes >= FLUSH_BYTES:
            self.flush()

    def _open(self) -> int:
        if self._path == "-":
            sys.stdout.flush()
            return os.dup(1)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _write_on(self) -> None:
        """The writer thread. It alone uses the file."""
        while (batch := self._batches.get()) is not None:
            data = b"".join(batch)
            try:
                if self._reopen.is_set():
                    self._reopen.clear()
                    fresh = self._open()
                    os.close(self._file)
                    self._file = fresh
                self._write_all(data)
            except OSError:  # a full disk, a closed pipe: the log is lost and counted, the service is not
                self._lines_lost += len(batch)
            self._bytes_written += len(data)
        os.close(self._file)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]


_second = 0
_second_text = ""


def _timestamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds. The part down to the second is made once a second."""
    global _second, _second_text
    whole = int(unix_seconds)
    if whole != _second:
        _second, _second_text = whole, datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
    return f"{_second_text}{int((unix_seconds - whole) * 1000):03d}Z"


def _ms(at: float | None, since: float) -> float | None:
    return None if at is None else round((at - since) * 1e3, 3)
