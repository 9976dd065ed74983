"""What is written of each line, and what is left of it after a crash?

Two files grow while a batch runs, one of answers and one of errors. They are what the client gets in the end, and the
only record of which lines are done: a line's number is in the id of its result.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.batches.lines import GIVE_WAY_LINES, GIVE_WAY_SECONDS
from proxy.batches.record import Usage

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.inner import InnerAnswer

_NUMBER_DIGITS = 8
_RESULT_BYTES_MAX = 268_435_456


def result_id(batch_id: str, number: int) -> str:
    """The id of a line's result, which names the line."""
    return f"batch_req_{batch_id.removeprefix('batch_')}{number:0{_NUMBER_DIGITS}x}"


class Written(NamedTuple):
    """Results as they are written, and the tokens that they took."""

    data: bytes
    usage: Usage


def write(batch_id: str, answers: list[tuple[int, str, InnerAnswer]]) -> tuple[Written, Written]:
    """The results of lines that were answered (number, custom_id, answer): the good ones and the others."""
    good: tuple[list[bytes], Usage] = [], Usage()
    bad: tuple[list[bytes], Usage] = [], Usage()
    for number, custom_id, answer in answers:
        pieces, usage = good if answer.ok else bad
        data, used = _answered(batch_id, number, custom_id, answer)
        pieces.append(data)
        usage.add(used)
    return Written(b"".join(good[0]), good[1]), Written(b"".join(bad[0]), bad[1])


def _answered(batch_id: str, number: int, custom_id: str, answer: InnerAnswer) -> tuple[bytes, Usage]:
    if not answer.whole or not answer.status:
        reason = answer.fault_reason or "engine_lost"
        return failed(batch_id, number, custom_id, reason, "the answer broke off or is too large"), Usage()
    try:
        body = orjson.loads(answer.body)
        # As it came, unless it has line ends, which would tear this line apart.
        shown = orjson.Fragment(answer.body) if b"\n" not in answer.body and b"\r" not in answer.body else body
    except orjson.JSONDecodeError:
        body = shown = answer.body.decode("utf-8", "replace")
    request_id = answer.headers.get(b"x-request-id", b"").decode("latin-1")
    response = {"status_code": answer.status, "request_id": request_id, "body": shown}
    return _line(batch_id, number, custom_id, response, None), usage_of(body)


def failed(batch_id: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """A line that has no answer."""
    return _line(batch_id, number, custom_id, None, {"code": code, "message": message})


def _line(batch_id: str, number: int, custom_id: str, response: Any, error: Any) -> bytes:
    value = {"id": result_id(batch_id, number), "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def usage_of(body: Any) -> Usage:
    """The tokens that an answer says it took, in either of the API's two ways to say it."""
    given = _object(body, "usage")
    cached = _object(given, "prompt_tokens_details", "input_tokens_details")
    reasoning = _object(given, "completion_tokens_details", "output_tokens_details")
    return Usage(
        _count(given, "prompt_tokens", "input_tokens"),
        _count(cached, "cached_tokens"),
        _count(given, "completion_tokens", "output_tokens"),
        _count(reasoning, "reasoning_tokens"),
    )


def _object(value: Any, *names: str) -> dict[str, Any]:
    found = [value[name] for name in names if isinstance(value.get(name), dict)] if isinstance(value, dict) else []
    return found[0] if found else {}


def _count(value: dict[str, Any], *names: str) -> int:
    found = [value[name] for name in names if type(value.get(name)) is int]
    return found[0] if found else 0


class Recovered(NamedTuple):
    """What a file of results held."""

    lines: int
    usage: Usage


class Results:
    """One of the two files. What it has over `size` is the rest of a write that failed: the next one overwrites it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0

    def size_on_disk(self) -> int:
        """0 if there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, data: bytes) -> None:
        """Add whole lines: all of them, or with OSError none."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(data)
        self.size += len(data)

    def recover(self, batch_id: str, done: bytearray) -> Recovered:
        """Read what an earlier process wrote, up to the first line that is not a whole result of a line not yet done;
        cut off the rest. Marks in `done` the lines that have results. OSError."""
        count, usage, size = 0, Usage(), 0
        if self.path.exists():
            with self.path.open("r+b") as file:
                while data := file.readline(_RESULT_BYTES_MAX):
                    found = _read_result(data, batch_id)
                    if found is None or not 0 < found[0] < len(done) or done[found[0]]:
                        break
                    done[found[0]] = True
                    count += 1
                    if not count % GIVE_WAY_LINES:
                        time.sleep(GIVE_WAY_SECONDS)
                    size += len(data)
                    usage.add(found[1])
                file.truncate(size)
        self.size = size
        return Recovered(count, usage)


def _read_result(data: bytes, batch_id: str) -> tuple[int, Usage] | None:
    if not data.endswith(b"\n"):
        return None
    try:
        value = orjson.loads(data)
        given = value["id"]
        number = int(given[-_NUMBER_DIGITS:], 16)
    except (ValueError, TypeError, KeyError):
        return None
    if given != result_id(batch_id, number):
        return None
    return number, usage_of(_object(value, "response").get("body"))
