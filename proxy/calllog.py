"""The call log: one JSON line a call, written by a thread of its own so that a slow disk or pipe holds nobody up."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from proxy.call import Call

FLUSH_BYTES = 262_144
TEXT_MAX = 512
"""Characters of a value that a client chose."""
ALIKE_MAX = 1024
"""Different kinds of lines kept ready."""
EVENTS_PER_SECOND = 100
"""Lines that are no calls; more are counted and summed up in one."""
CLOSE_SECONDS = 5.0


class CallLog:
    """Lines are gathered and handed to the writer by `flush` and at 64 KiB. At most `buffer_bytes` wait for it; further
    lines are dropped and counted in `lines_dropped`. `path` "-" is standard output. OSError if it cannot be opened."""

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
        self._line_cut = False
        self._file = self._open()
        self._writer = threading.Thread(target=self._write_on, name="call-log", daemon=True)
        self._writer.start()

    def write(self, call: Call) -> None:
        """One line for a call that has ended."""
        identity = call.identity
        arrived_at, outcome, model = call.arrived_at, call.outcome, call.model
        line: dict[str, Any] = {
            "ts": _timestamp(call.arrived_unix_seconds),
            "event": "call",
            "id": call.id,
            "request_id": call.request_id[:TEXT_MAX],
            "key": call.key_name,
            "method": call.method[:TEXT_MAX],
            "path": call.path[:TEXT_MAX],
            "route": call.route,
            "model": model[:TEXT_MAX] if model is not None else None,
            "stream": call.stream,
            "workflow": {"id": identity.workflow_id or call.id, "node": identity.node, "source": identity.source},
            "policy": call.policy,
            "engine": call.engine,
            "attempts": call.attempts,
            "status": call.status,
            # A member of a StrEnum is written through its property `value`, which is Python.
            "outcome": outcome._value_ if outcome is not None else None,
            "reason": call.reason,
            "prompt_tokens": call.prompt_tokens,
            "cached_tokens": call.cached_tokens,
            "output_tokens": call.output_tokens,
            "held_ms": _ms(call.dispatched_at, arrived_at),
            "ttft_ms": _ms(call.first_byte_at, arrived_at),
            "duration_ms": _ms(call.finished_at, arrived_at),
            "overhead_us": int(call.overhead_seconds * 1e6 + 0.5),
            "request_bytes": call.request_bytes,
            "response_bytes": call.response_bytes,
        }
        if self._prompts and call.prompt_text is not None:
            line["prompt"] = call.prompt_text.decode("utf-8", "replace")
        self._add(_encode(line))

    def event(self, kind: str, **fields: Any) -> None:
        """A line that is no call: an engine up or down, a reload, a failed attempt. At most EVENTS_PER_SECOND."""
        self._tell_left_out()
        self._events += 1
        if self._events <= EVENTS_PER_SECOND:
            self._add_event(kind, fields)

    @property
    def lines_dropped(self) -> int:
        """Lines that were never written."""
        return self._lines_refused + self._lines_lost

    def flush(self) -> None:
        """Hand what has been gathered to the writer; the gateway does so a few times a second."""
        if self._events > EVENTS_PER_SECOND:
            self._tell_left_out()
        self._hand_over()

    def reopen(self) -> None:
        """Open the file anew before the next line: it was moved away by a log rotation."""
        self._reopen.set()

    def close(self) -> None:
        """Write everything, waiting for a stuck reader no longer than CLOSE_SECONDS."""
        self._hand_over()
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
            self._hand_over()

    def _hand_over(self) -> None:
        if self._lines:
            self._bytes_handed += self._line_bytes
            self._batches.put(self._lines)
            self._lines, self._line_bytes = [], 0

    def _add_event(self, kind: str, fields: dict[str, Any]) -> None:
        shown = {name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()}
        self._add(_encode({"ts": _timestamp(time()), "event": kind, **shown}))

    def _tell_left_out(self) -> None:
        """In a new second: say how many events the one before had too many."""
        second = int(monotonic())
        if second == self._events_at:
            return
        left_out = self._events - EVENTS_PER_SECOND
        self._events_at, self._events = second, 0
        if left_out > 0:
            self._add_event("events_left_out", {"count": left_out})

    # --- the writer thread: it alone uses the file ---

    def _open(self) -> int:
        if self._path == "-":
            sys.stdout.flush()
            return os.dup(1)
        # Not blocking: a pipe that nobody reads is an error at the start, instead of a start that never ends.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o640)

    def _write_on(self) -> None:
        while (batch := self._batches.get()) is not None:
            if self._reopen.is_set():
                self._open_anew()
            data = b"".join(batch)
            self._write_all(data)
            self._bytes_written += len(data)
        os.close(self._file)

    def _open_anew(self) -> None:
        try:
            fresh = self._open()
        except OSError as error:  # written on where it was; tried again with the next lines
            line = {"ts": _timestamp(time()), "event": "log_not_reopened", "detail": str(error)}
            self._write_all(_encode(line))
            return
        self._reopen.clear()
        os.close(self._file)
        self._file = fresh

    def _write_all(self, data: bytes) -> None:
        """A full disk or a closed pipe loses lines and counts them; the service goes on."""
        start = b"\n" if self._line_cut else b""
        view = memoryview(start + data)
        written = 0
        try:
            while written < len(view):
                try:
                    written += os.write(self._file, view[written:])
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._file, select.POLLOUT)
                    poll.poll()
        except OSError:
            self._lines_lost += bytes(view[max(written, len(start)) :]).count(b"\n")
        if written:
            self._line_cut = view[written - 1] != ord("\n")


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an integer over 64 bits, half a surrogate pair in a file's name, an object: shown as text
        shown = {}
        for name, value in line.items():
            try:
                orjson.dumps(value)
                shown[name] = value
            except TypeError:
                shown[name] = str(value).encode("utf-8", "backslashreplace").decode()
        return orjson.dumps(shown, option=orjson.OPT_APPEND_NEWLINE)


_MILLISECONDS = [f"{milliseconds:03d}Z" for milliseconds in range(1000)]


@lru_cache(maxsize=8)
def _to_the_second(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _timestamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    whole = int(unix_seconds)
    return _to_the_second(whole) + _MILLISECONDS[int((unix_seconds - whole) * 1000)]


def _ms(at: float | None, since: float) -> float | None:
    """Milliseconds, cut to three places: `round` takes three times as long."""
    return None if at is None else int((at - since) * 1e6) / 1e3
