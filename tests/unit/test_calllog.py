"""The call log on real files, pipes and disks that are full or stuck."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy import calllog as module
from proxy.call import Call, Outcome
from proxy.calllog import EVENTS_PER_SECOND, FLUSH_BYTES, TEXT_MAX, CallLog
from proxy.identity import Identity

BUFFER_BYTES = 1 << 20
WAIT_SECONDS = 20.0


def call(**changes: object) -> Call:
    """A finished call."""
    identity = Identity("run-1", "joulegate-header", "plan")
    made = Call(
        "jg-1", "r-1", "POST", "/v1/completions", "/v1/completions", 100.0, 1_790_000_000.25, identity, "fifo", 77
    )
    made.key_name, made.model, made.engine, made.attempts = "team", "m", "gpu0", 2
    made.dispatched_at, made.first_byte_at, made.finished_at = 100.5, 101.0, 102.25
    made.overhead_seconds, made.status, made.outcome, made.response_bytes = 3.21e-5, 200, Outcome.OK, 99
    made.prompt_tokens, made.output_tokens = 7, 3
    for name, value in changes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """The log as a reader of JSON lines sees it."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def logged(tmp_path: Path, one: Call, *, prompts: bool = False) -> dict[str, Any]:
    """The line of one call."""
    path = tmp_path / "log"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=prompts)
    log.write(one)
    log.close()
    (line,) = lines(path)
    return line


def written(log: CallLog) -> None:
    """Hand over what has been gathered and wait until the writer has done with it."""
    log.flush()
    until = time.monotonic() + WAIT_SECONDS
    while log._bytes_written < log._bytes_handed:
        assert time.monotonic() < until, "the writer is stuck"
        time.sleep(0.001)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The log's monotonic clock, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def test_a_call_is_one_line(tmp_path: Path) -> None:
    assert logged(tmp_path, call()) == {
        "ts": datetime.fromtimestamp(1_790_000_000.25, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "event": "call",
        "id": "jg-1",
        "request_id": "r-1",
        "key": "team",
        "method": "POST",
        "path": "/v1/completions",
        "route": "/v1/completions",
        "model": "m",
        "stream": False,
        "workflow": {"id": "run-1", "node": "plan", "parent": None, "source": "joulegate-header"},
        "policy": "fifo",
        "engine": "gpu0",
        "attempts": 2,
        "status": 200,
        "outcome": "ok",
        "reason": None,
        "prompt_tokens": 7,
        "cached_tokens": None,
        "output_tokens": 3,
        "held_ms": 500.0,
        "ttft_ms": 1000.0,
        "duration_ms": 2250.0,
        "overhead_us": 32,
        "request_bytes": 77,
        "response_bytes": 99,
    }


def test_the_documentation_lists_the_members_that_there_are(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "observability.md").read_text()
    table = text.partition("## The call log")[2].partition("Values that clients choose")[0]
    listed = [
        name for cell in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(listed) == sorted(logged(tmp_path, call()))


def test_what_did_not_happen_is_null(tmp_path: Path) -> None:
    times = {"dispatched_at": None, "first_byte_at": None, "finished_at": None}
    nothing = {"engine": None, "model": None, "status": None, "outcome": None, "prompt_tokens": None}
    line = logged(tmp_path, call(**times, **nothing, output_tokens=None, identity=Identity("", "none")))
    for name in ("held_ms", "ttft_ms", "duration_ms", "prompt_tokens", "output_tokens", "engine", "model", "outcome"):
        assert line[name] is None, name
    assert line["workflow"] == {"id": "jg-1", "node": None, "parent": None, "source": "none"}, "a workflow of its own"


def test_clients_can_neither_forge_a_line_nor_fill_the_log(tmp_path: Path) -> None:
    forged = '"}\n{"event":"call","key":"somebody"}\r\n\x00\x1b[2J'
    long = "x" * 1_000_000
    line = logged(tmp_path, call(request_id=forged, path=forged + long, model=long, method=long))
    assert line["request_id"] == forged
    assert len(line["path"]) == len(line["model"]) == len(line["method"]) == TEXT_MAX


def test_what_is_kept_ready_for_the_next_line_is_bounded(tmp_path: Path) -> None:
    log = CallLog(str(tmp_path / "log"), buffer_bytes=BUFFER_BYTES, prompts=False)
    for number in range(2 * module.ALIKE_MAX + 1):
        log.write(call(path=f"/{number}"))
        log.write(call(model=f"{number}" + "x" * TEXT_MAX))
    assert len(log._alike) <= module.ALIKE_MAX
    assert max(len(value) for kind in log._alike for value in kind if isinstance(value, str)) <= TEXT_MAX
    log.close()


def test_lines_of_one_kind_differ_where_their_calls_do(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    changes = [
        {},
        {"stream": True},
        {"outcome": Outcome.TIMEOUT},
        {"key_name": "other"},
        {"status": None},
        {"attempts": 1},
    ]
    for change in changes * 2:
        log.write(call(**change))
    log.close()
    found = [(c["stream"], c["outcome"], c["key"], c["status"], c["attempts"]) for c in lines(path)]
    assert found[:6] == found[6:]
    assert found[:6] == [
        (False, "ok", "team", 200, 2),
        (True, "ok", "team", 200, 2),
        (False, "timeout", "team", 200, 2),
        (False, "ok", "other", 200, 2),
        (False, "ok", "team", None, 2),
        (False, "ok", "team", 200, 1),
    ]


def test_prompts_are_written_only_where_they_were_asked_for(tmp_path: Path) -> None:
    secret = call(prompt_text=b'{"prompt": "secret \xff"}')
    assert "secret" not in json.dumps(logged(tmp_path, secret))
    (tmp_path / "log").unlink()
    assert logged(tmp_path, secret, prompts=True)["prompt"] == '{"prompt": "secret \ufffd"}'


def test_what_json_has_no_word_for_is_shown_as_text(tmp_path: Path) -> None:
    line = logged(tmp_path, call(prompt_tokens=2**70, model="half \ud800"))
    assert (line["prompt_tokens"], line["model"], line["key"]) == (2**70, "half \\ud800", "team")
    path = tmp_path / "events"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    log.event("state_not_saved", detail="file \udcff", cause=OSError(5, "I/O error"), long="y" * 9999)
    log.close()
    (event,) = lines(path)
    assert event["event"] == "state_not_saved"
    assert event["detail"] == "file \\udcff"
    assert event["cause"] == "[Errno 5] I/O error"
    assert len(event["long"]) == TEXT_MAX


def test_events_are_rate_limited_and_the_rest_is_summed_up(tmp_path: Path, seconds: list[float]) -> None:
    path = tmp_path / "log"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    for number in range(EVENTS_PER_SECOND + 40):
        log.event("attempt_failed", number=number)
    log.flush()
    seconds[0] += 1
    written(log)  # nothing else happens: the sum is told all the same
    assert lines(path)[-1]["count"] == 40
    log.event("engine_up")
    log.write(call())
    log.close()
    found = lines(path)
    assert [line.get("number") for line in found[:EVENTS_PER_SECOND]] == list(range(EVENTS_PER_SECOND))
    assert [(line["event"], line.get("count")) for line in found[EVENTS_PER_SECOND:]] == [
        ("events_left_out", 40),
        ("engine_up", None),
        ("call", None),
    ]
    assert log.lines_dropped == 0


def test_a_full_batch_is_written_without_waiting_for_the_next_flush(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    log.write(call())
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)  # gathered, not written
    for _ in range(FLUSH_BYTES // 300):
        log.write(call())
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"{"
    os.close(reader)
    log.close()


def test_a_stuck_reader_stops_nobody_and_loses_only_what_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(str(path), buffer_bytes=2 * FLUSH_BYTES, prompts=False)
    calls = 0
    while not log.lines_dropped:  # far over the pipe and the buffer; ends only if nothing here waits for the reader
        log.write(call(request_id=str(calls)))
        calls += 1
    log.flush()
    os.set_blocking(reader, True)
    received = bytearray()

    def read() -> None:
        while data := os.read(reader, 65536):
            received.extend(data)

    reading = threading.Thread(target=read)
    reading.start()
    log.close()
    reading.join(WAIT_SECONDS)
    os.close(reader)
    ids = [int(json.loads(line)["request_id"]) for line in received.splitlines()]
    assert len(ids) + log.lines_dropped == calls
    assert ids == list(range(len(ids))), "whole lines, in order, and the last ones missing"


def test_a_stuck_reader_does_not_keep_the_process_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    while not log.lines_dropped:
        log.write(call())
    log.close()
    assert log._writer.is_alive() and log._writer.daemon
    os.close(reader)  # frees the thread: its pipe is broken
    log._writer.join(WAIT_SECONDS)
    assert not log._writer.is_alive()


def test_a_reader_that_leaves_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    os.close(reader)
    for _ in range(3):
        log.write(call())
    log.close()
    assert log.lines_dropped == 3


def test_a_disk_that_fills_up_leaves_no_half_line_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    real, room = os.write, [900]

    def write(file: int, data: bytes) -> int:
        if file != log._file:
            return real(file, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(file, bytes(data)[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(module.os, "write", write)
    for number in range(5):
        log.write(call(request_id=str(number)))
    written(log)
    room[0] = 1 << 20
    log.write(call(request_id="after"))
    log.close()
    rows = path.read_bytes().split(b"\n")
    whole = [json.loads(row)["request_id"] for row in rows if row.endswith(b"}")]
    assert whole[-1] == "after" and whole[:-1] == [str(number) for number in range(len(whole) - 1)]
    assert len([row for row in rows if row and not row.endswith(b"}")]) == 1, "the line that was cut, alone on its row"
    assert len(whole) + log.lines_dropped == 6


def test_reopen_follows_a_rotation(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    log.write(call(request_id="before"))
    log.close()
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    path.rename(moved)
    log.reopen()
    log.write(call(request_id="after"))
    written(log)
    assert [line["request_id"] for line in lines(moved)] == ["before"]
    assert [line["request_id"] for line in lines(path)] == ["after"]
    assert path.stat().st_mode & 0o777 & ~0o640 == 0, "not for everybody to read"
    path.rename(moved)
    log.write(call(request_id="not told to reopen"))
    log.close()
    assert [line["request_id"] for line in lines(moved)] == ["after", "not told to reopen"]
    assert not path.exists()


def test_a_file_that_cannot_be_reopened_is_written_on_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path, moved = folder / "log", tmp_path / "log.1"
    log = CallLog(str(path), buffer_bytes=BUFFER_BYTES, prompts=False)
    path.rename(moved)
    folder.rmdir()
    log.reopen()
    log.write(call(request_id="first"))
    written(log)
    folder.mkdir()
    log.write(call(request_id="second"))
    log.close()
    kept = lines(moved)
    assert kept[0]["event"] == "log_not_reopened" and str(path) in kept[0]["detail"]
    assert [line["request_id"] for line in kept[1:]] == ["first"]
    assert [line["request_id"] for line in lines(path)] == ["second"]
    assert log.lines_dropped == 0


def test_a_path_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CallLog(str(tmp_path / "nowhere" / "log"), buffer_bytes=BUFFER_BYTES, prompts=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        CallLog(str(tmp_path / "pipe"), buffer_bytes=BUFFER_BYTES, prompts=False)


def test_a_minus_is_standard_output() -> None:
    program = (
        "from proxy.calllog import CallLog\n"
        "log = CallLog('-', buffer_bytes=65536, prompts=False)\n"
        "print('before', flush=True); log.event('engine_up', engine='gpu0'); log.close(); print('after')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=WAIT_SECONDS)
    before, line, after = ran.stdout.splitlines()
    assert (before, after) == (b"before", b"after")
    assert json.loads(line)["engine"] == "gpu0"


def test_timestamps_are_utc_with_milliseconds_over_the_seconds_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    stamps = [
        logged(tmp_path / str(index), call(arrived_unix_seconds=at))["ts"]
        for index, at in enumerate((1_790_000_000.0, 1_790_000_000.9999, 1_790_000_001.0015))
        if (tmp_path / str(index)).mkdir() is None
    ]
    assert stamps == ["2026-09-21T14:13:20.000Z", "2026-09-21T14:13:20.999Z", "2026-09-21T14:13:21.001Z"]
