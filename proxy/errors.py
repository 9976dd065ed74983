"""Errors as clients of the OpenAI API expect them: a JSON object with a message, a type, a parameter and a code."""

from __future__ import annotations

from http import HTTPStatus

import orjson

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class RequestFault(Exception):
    """A request that is answered with an error instead of being sent to an engine.

    `reason` is the machine-readable word (header `x-joulegate-reason`, `code` in the body); `close`: the rest of the
    connection cannot be understood, so it is closed after the answer.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.close = close


def error_object(status: int, reason: str, message: str, param: str | None = None) -> bytes:
    """The JSON body of an error answer, or the data of an SSE error event."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": reason}})


def error_answer(
    fault: RequestFault, extra_headers: tuple[tuple[bytes, bytes], ...] = (), *, close: bool, head_only: bool = False
) -> bytes:
    """A whole HTTP/1.1 error answer."""
    body = error_object(fault.status, fault.reason, fault.message, fault.param)
    lines = [
        status_line(fault.status),
        b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
        b"x-joulegate-reason: %b\r\n" % fault.reason.encode("ascii"),
    ]
    if fault.status == 401:
        lines.append(b"www-authenticate: Bearer\r\n")
    retry = fault.retry_after_seconds
    if retry is None and fault.status in (429, 503):
        retry = 1.0
    if retry is not None:
        lines.append(b"retry-after: %d\r\n" % max(1, -int(-retry // 1)))
    lines += [b"%b: %b\r\n" % header for header in extra_headers]
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """`HTTP/1.1 404 Not Found` with its line end."""
    line = _STATUS_LINES.get(status)
    return line if line is not None else b"HTTP/1.1 %d Unknown\r\n" % status
