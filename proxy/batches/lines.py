"""Is a file a good batch? And what does each of its lines ask for?

A line is `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`. The body goes to the engine byte for byte.
"""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.admission import as_boolean
from proxy.jsonedit import member_span
from proxy.jsonsize import over

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
CUSTOM_ID_LENGTH_MAX = 256
ERRORS_MAX = 100
"""Told of one file; the others are counted."""
CHUNK_LINES = 64
CHUNK_BYTES = 1_048_576
GIVE_WAY_LINES = 64
GIVE_WAY_SECONDS = 0.000_5
"""A thread that computes without a pause keeps the event loop from the interpreter for milliseconds at a time."""
_COMPLEX_BYTES = 65_536
_NO_LIMIT = 2**40
_MEMBERS = ("custom_id", "method", "url", "body")


class Rules(NamedTuple):
    """What lines must keep to."""

    endpoint: str
    lines: int
    line_bytes: int
    json_values: int


class Line(NamedTuple):
    """One request of a file."""

    number: int
    """Its place in the file, from 1, blank lines counted."""
    custom_id: str
    model: str | None
    body: bytes


class LineFault(Exception):
    """A line cannot be used: OpenAI's `code`, what is wrong, and which member it is about."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Checked(NamedTuple):
    """What a look at a whole file found."""

    total: int
    last_line: int
    model: str | None
    """If it is the same in all lines."""
    errors: list[dict[str, Any]]


class Chunk(NamedTuple):
    """A few lines of a file, and where the next ones are."""

    lines: list[Line]
    offset: int
    number: int
    ended: bool


def read_line(data: bytes, number: int, rules: Rules) -> Line:
    """What a line asks for. Raises LineFault."""
    if len(data) > rules.line_bytes:
        raise LineFault("line_too_long", f"the line is over {rules.line_bytes} bytes (batches.line_bytes)")
    if len(data) > _COMPLEX_BYTES and over(data, rules.json_values):
        raise LineFault("line_too_complex", f"the line has over {rules.json_values} values (limits.json_values)")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise LineFault("invalid_json_line", f"the line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise LineFault("invalid_json_line", f"the line must be a JSON object, not {type(value).__name__}")
    for name in _MEMBERS:
        if name not in value:
            raise LineFault("missing_required_parameter", f"the line has no {name}", name)
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_LENGTH_MAX:
        message = f"custom_id must be a string of 1 to {CUSTOM_ID_LENGTH_MAX} characters"
        raise LineFault("invalid_custom_id", message, "custom_id")
    if value["method"] != "POST":
        raise LineFault("invalid_method", 'method must be "POST"', "method")
    if value["url"] != rules.endpoint:
        raise LineFault("url_mismatch", f"url must be the batch's endpoint, {rules.endpoint}", "url")
    if not isinstance(body, dict):
        raise LineFault("invalid_request", f"body must be a JSON object, not {type(body).__name__}", "body")
    for name in ("stream", "background"):
        if body.get(name) is not None and as_boolean(body[name]) is not False:
            raise LineFault("invalid_request", f"{name} is not possible in a batch; leave it out", f"body.{name}")
    span = member_span(data, "body")
    assert span is not None
    model = body.get("model")
    return Line(number, custom_id, model if isinstance(model, str) else None, data[span[0] : span[1]])


def check(path: Path, rules: Rules) -> Checked:
    """Look at every line of a file, before the first of them runs; waits for the disk."""
    errors: list[dict[str, Any]] = []
    wrong = total = number = 0
    seen: set[str] = set()
    models: set[str | None] = set()

    def tell(code: str, message: str, param: str | None, line: int | None) -> None:
        nonlocal wrong
        wrong += 1
        if wrong <= ERRORS_MAX:
            errors.append({"code": code, "message": message, "param": param, "line": line})

    with path.open("rb") as file:
        for number, data in _numbered(file, 0, rules):
            if number > rules.lines:
                tell("too_many_tasks", f"the file has over {rules.lines} lines (batches.batch_lines)", None, number)
                break
            if not number % GIVE_WAY_LINES:
                time.sleep(GIVE_WAY_SECONDS)
            if not data:
                continue
            total += 1
            try:
                line = read_line(data, number, rules)
            except LineFault as fault:
                tell(fault.code, fault.message, fault.param, number)
                continue
            if line.custom_id in seen:
                tell("duplicate_custom_id", f"custom_id {line.custom_id!r} is there twice", "custom_id", number)
            seen.add(line.custom_id)
            if len(models) < 2:
                models.add(line.model)
    if not total:
        tell("empty_file", "the file has no lines", None, None)
    if wrong > ERRORS_MAX:
        message = f"{wrong - ERRORS_MAX} further errors are not listed"
        errors.append({"code": "too_many_errors", "message": message, "param": None, "line": None})
    return Checked(total, number, models.pop() if len(models) == 1 else None, errors)


def read_chunk(path: Path, endpoint: str, offset: int, number: int, done: bytearray) -> Chunk:
    """The next lines not done of a file that was checked, under the limits of that day; waits for the disk."""
    rules = Rules(endpoint, _NO_LIMIT, _NO_LIMIT, _NO_LIMIT)
    found: list[Line] = []
    size = 0
    with path.open("rb") as file:
        file.seek(offset)
        at = number
        for at, data in _numbered(file, number, rules):
            if data and not done[at]:
                found.append(read_line(data, at, rules))
                size += len(data)
                if len(found) == CHUNK_LINES or size >= CHUNK_BYTES:
                    return Chunk(found, file.tell(), at, ended=False)
        return Chunk(found, file.tell(), at, ended=True)


def _numbered(file: IO[bytes], number: int, rules: Rules) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without white space around them; of one that is too long, so much that it shows."""
    while data := file.readline(rules.line_bytes + 2):
        whole = data.endswith(b"\n")
        while not whole and (rest := file.readline(CHUNK_BYTES)):
            whole = rest.endswith(b"\n")
            data = data[: rules.line_bytes] + b"xx"
        number += 1
        yield number, data.strip(b" \t\r\n")
