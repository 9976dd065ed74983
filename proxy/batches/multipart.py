"""Which fields and files does a multipart/form-data body hold?

The whole body is in memory already, so its parts are found and not streamed: a part is a view into the body, nothing is
copied. The heads of parts, where the quoting is, are read by the standard library.
"""

from __future__ import annotations

from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value
from typing import TYPE_CHECKING, NamedTuple

from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS_MAX = 32
HEAD_BYTES_MAX = 8_192
FIELD_BYTES_MAX = 4_096
BOUNDARY_LENGTH_MAX = 70
"""RFC 2046, 5.1.1"""
CONTENT_TYPE_LENGTH_MAX = 1_024
"""The standard library takes a time that grows with the square of it."""


class Part(NamedTuple):
    """One part. `filename` None: a plain field."""

    name: str
    filename: str | None
    data: memoryview

    def text(self) -> str:
        """A field's value. RequestFault if it is none."""
        if len(self.data) > FIELD_BYTES_MAX:
            raise _fault(f"the field {self.name[:64]!r} is over {FIELD_BYTES_MAX} bytes", self.name[:64])
        try:
            return str(self.data, "utf-8")
        except UnicodeDecodeError:
            raise _fault(f"the field {self.name[:64]!r} is not UTF-8", self.name[:64]) from None


def parse(body: bytes, content_type: str | None) -> dict[str, Part]:
    """The parts by name. RequestFault for what is no form, and for two parts of one name."""
    parts: dict[str, Part] = {}
    for start, end in _spans(body, b"--" + _boundary(content_type)):
        if len(parts) == PARTS_MAX:
            raise _fault(f"the form has over {PARTS_MAX} parts")
        part = _part(body, start, end)
        if part.name in parts:
            raise _fault(f"the form has two parts named {part.name[:64]!r}", part.name[:64])
        parts[part.name] = part
    return parts


def _boundary(content_type: str | None) -> bytes:
    head = Message()
    if len(content_type or "") > CONTENT_TYPE_LENGTH_MAX:
        raise _fault(f"Content-Type is over {CONTENT_TYPE_LENGTH_MAX} characters")
    head["content-type"] = content_type or ""
    if head.get_content_type() != "multipart/form-data":
        raise _fault("the body must be multipart/form-data, with the parts `file` and `purpose`")
    boundary = (_parameter(head, "boundary", "content-type") or "").rstrip()
    if not boundary or not boundary.isascii() or len(boundary) > BOUNDARY_LENGTH_MAX:
        raise _fault(f"Content-Type names no boundary of 1 to {BOUNDARY_LENGTH_MAX} characters")
    return boundary.encode("ascii")


def _spans(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Where each part starts and ends, head included. A delimiter stands at the start of a line; what only begins like
    one is content."""
    start: int | None = None
    at = 0 if body.startswith(delimiter) else _next(body, delimiter, 0)
    while at >= 0:
        behind = at + len(delimiter)
        line_end = body.find(b"\r\n", behind, behind + 256)
        if body[behind : behind + 2] == b"--":
            if start is not None:
                yield start, at - 2
            return
        if line_end >= 0 and not body[behind:line_end].strip(b" \t"):
            if start is not None:
                yield start, at - 2
            start = line_end + 2
        # A part may be empty: the line end before the next delimiter can be the one behind this one's head.
        at = _next(body, delimiter, behind if line_end < 0 else line_end)
    raise _fault("the form is cut off: its last boundary is missing")


def _next(body: bytes, delimiter: bytes, start: int) -> int:
    at = body.find(b"\r\n" + delimiter, start)
    return at if at < 0 else at + 2


def _part(body: bytes, start: int, end: int) -> Part:
    if body[start : start + 2] == b"\r\n":
        raise _fault("a part of the form has no head")
    head_end = body.find(b"\r\n\r\n", start, min(end, start + HEAD_BYTES_MAX) + 4)
    if head_end < 0:
        raise _fault(f"a part of the form has no head of at most {HEAD_BYTES_MAX} bytes")
    head = HeaderParser().parsestr(body[start:head_end].decode("utf-8", "replace"))
    if head.get_content_disposition() != "form-data":
        raise _fault("a part of the form has no Content-Disposition: form-data")
    if head.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise _fault("Content-Transfer-Encoding has no meaning in a form (RFC 7578, 4.7); send the bytes as they are")
    name = _parameter(head, "name", "content-disposition")
    if name is None:
        raise _fault("a part of the form has no name")
    filename = _parameter(head, "filename", "content-disposition")
    return Part(name, filename, memoryview(body)[head_end + 4 : max(end, head_end + 4)])


def _parameter(head: Message, name: str, header: str) -> str | None:
    """A parameter as text that can be written down: RFC 2231 lets clients name any codec that Python has."""
    try:
        value = head.get_param(name, header=header)
        text = None if value is None else collapse_rfc2231_value(value)
    except (ValueError, TypeError, LookupError):  # a codec that cannot do it, a NUL in its name, numbers that are none
        raise _fault(f"the parameter {name!r} of the form's {header} cannot be read") from None
    return None if text is None else text.encode("utf-8", "replace").decode()


def _fault(message: str, param: str | None = None) -> RequestFault:
    return RequestFault(400, "invalid_form", message, param=param)
