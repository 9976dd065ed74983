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
    """Lines are gathered and handed to the writer by `flush` and at 256 KiB. At most `buffer_bytes` wait for it; more
    are dropped and counted in `lines_dropped`. `path` "-" is standard output. OSError if it cannot be opened."""

    def __init__(self, path: str, *, buffer_bytes: int, prompts: bool) -> None:
        self._path = path
        self._prompts = prompts
        self._buffer_bytes = buffer_bytes
        self._alike: dict[tuple[Any, ...], bytes] = {}
        self._gathered = bytearray()
        """Lines in one piece: thousands of small objects that live until the next flush would cost more."""
        # Each of these has one writer: the event loop the first two, the thread the others.
        self._lines_refused = self._bytes_handed = 0
        self._lines_lost = self._bytes_written = 0
        self._events_at = 0
        self._events = 0
        self._batches: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        self._reopen = threading.Event()
        self._line_cut = False
        self._file = self._open()
        self._writer = threading.Thread(target=self._write_on, name="call-log", daemon=True)
        self._writer.start()

    def write(self, call: Call) -> None:
        """One line for a call that has ended.

        What many calls have in common is made into JSON once and kept; the rest is put around it. Making a dictionary
        of it all and encoding that costs twice as much, and every call pays it.
        """
        identity, arrived_at, outcome = call.identity, call.arrived_at, call.outcome
        kind = (
            call.key_name,
            call.method,
            call.path,
            call.route,
            call.model,
            call.stream,
            call.policy,
            call.engine,
            call.attempts,
            call.status,
            outcome._value_ if outcome is not None else None,  # `value` of a StrEnum's member is a property in Python
            call.reason,
        )
        alike = self._alike.get(kind)
        if alike is None:
            alike = self._make_alike(kind)
        call_id, request_id = call.id.encode("ascii"), call.request_id
        node, parent = identity.node, identity.parent_id
        workflow_id, finished_at = identity.workflow_id, call.finished_at
        prompt, cached, output = call.prompt_tokens, call.cached_tokens, call.output_tokens
        dispatched_at, first_byte_at = call.dispatched_at, call.first_byte_at
        line = _LINE % (
            _timestamp(call.arrived_unix_seconds).encode("ascii"),
            call_id,
            b'"%b"' % call_id if request_id == call.id else _text(request_id),
            _text(workflow_id) if workflow_id else b'"%b"' % call_id,
            b"null" if node is None else _text(node),
            b"null" if parent is None else _text(parent),
            identity.source.encode("ascii"),
            alike,
            b"null" if prompt is None else b"%d" % prompt,
            b"null" if cached is None else b"%d" % cached,
            b"null" if output is None else b"%d" % output,
            b"null" if dispatched_at is None else b"%.3f" % ((dispatched_at - arrived_at) * 1e3),
            b"null" if first_byte_at is None else b"%.3f" % ((first_byte_at - arrived_at) * 1e3),
            b"null" if finished_at is None else b"%.3f" % ((finished_at - arrived_at) * 1e3),
            call.overhead_seconds * 1e6,
            call.request_bytes,
            call.response_bytes,
        )
        if self._prompts and call.prompt_text is not None:
            line = b'%b,"prompt":%b}\n' % (line[:-2], orjson.dumps(call.prompt_text.decode("utf-8", "replace")))
        self._add(line)

    def _make_alike(self, kind: tuple[Any, ...]) -> bytes:
        """The members that many calls have in common; values that clients chose are cut."""
        values = [value[:TEXT_MAX] if isinstance(value, str) else value for value in kind]
        alike = _encode(dict(zip(_ALIKE, values, strict=True)))[1:-2]
        if tuple(values) == kind:  # nothing was cut: what is kept must not be as long as clients like
            if len(self._alike) >= ALIKE_MAX:  # nor as many, since paths and models come from clients
                self._alike.clear()
            self._alike[kind] = alike
        return alike

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
        gathered = self._gathered
        waiting = len(gathered) + self._bytes_handed - self._bytes_written
        if waiting + len(line) > self._buffer_bytes:
            self._lines_refused += 1
            return
        gathered += line
        if len(gathered) >= FLUSH_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._gathered:
            self._bytes_handed += len(self._gathered)
            self._batches.put(self._gathered)
            self._gathered = bytearray()

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
            self._write_all(batch)
            self._bytes_written += len(batch)
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

    def _write_all(self, data: bytes | bytearray) -> None:
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


_ALIKE = (
    *("key", "method", "path", "route", "model", "stream"),
    *("policy", "engine", "attempts", "status", "outcome", "reason"),
)
_LINE = (
    b'{"ts":"%b","event":"call","id":"%b","request_id":%b,"workflow":{"id":%b,"node":%b,"parent":%b,"source":"%b"},%b,'
    b'"prompt_tokens":%b,"cached_tokens":%b,"output_tokens":%b,"held_ms":%b,"ttft_ms":%b,"duration_ms":%b,'
    b'"overhead_us":%.0f,"request_bytes":%d,"response_bytes":%d}\n'
)


def _text(value: str) -> bytes:
    return orjson.dumps(value[:TEXT_MAX])


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
