"""One HTTP request as it was read from a client, and the rules of HTTP that the parser does not hold itself."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxy.errors import RequestFault

if TYPE_CHECKING:
    from proxy.identity import Identity

_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"authorization", b"content-type"))


class Request:
    """`headers`: (lowercase name, name, value) in order; `fields` by lowercase name, the last of equal names (of
    `connection` all)."""

    __slots__ = (
        "body",
        "fault",
        "fields",
        "headers",
        "http_1_0",
        "identity",
        "keep_alive",
        "key_name",
        "method",
        "read_at",
        "strangers",
        "target",
    )

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.method = b""
        self.http_1_0 = False
        self.keep_alive = True
        self.body = b""
        self.fault: RequestFault | None = None
        """What is wrong with it: then it is answered with this and goes no further."""
        self.read_at = 0.0
        """When it was whole, in seconds of the monotonic clock."""
        self.identity: Identity | None = None
        """Its place in a workflow, where that is known and need not be read from it."""
        self.key_name: str | None = None
        """Whose it is, once its key has been checked."""
        self.strangers = False
        """Its head has no good key, and its body is read all the same: there may be one in it."""

    def head_bytes(self) -> int:
        """The size of the head, from what was parsed: a body in the same read must not count."""
        return len(self.target) + sum(len(name) + len(value) + 4 for _, name, value in self.headers)

    def head_without(self, field: bytes) -> bytes:
        """The head as it came, without the fields of this lowercase name."""
        lines = [b"%b %b HTTP/%b\r\n" % (self.method, self.target, b"1.0" if self.http_1_0 else b"1.1")]
        lines += [b"%b: %b\r\n" % (name, value) for lower, name, value in self.headers if lower != field]
        return b"".join(lines) + b"\r\n"


def check_head(request: Request, version: str, body_bytes_max: int) -> None:
    """Refuse what must not reach an engine. Raises RequestFault; each with `close`, since the body is not read."""
    fields = request.fields
    if version != "1.1":
        if version != "1.0":
            raise RequestFault(505, "http_version", f"HTTP/{version} is not supported; use HTTP/1.1", close=True)
        request.http_1_0 = True
        request.keep_alive = False
    elif b"host" not in fields:
        raise RequestFault(400, "host_missing", "an HTTP/1.1 request needs a Host header", close=True)
    if len(fields) != len(request.headers):
        _check_duplicates(request)
    if b"transfer-encoding" in fields or b"expect" in fields:
        _check_transfer(request)
    if (length := fields.get(b"content-length")) is not None and int(length) > body_bytes_max:
        raise body_too_large(body_bytes_max)
    if request.method == b"CONNECT":  # also with a path: to the parser it is an upgrade whatever headers it has
        raise RequestFault(405, "method", "this is a gateway to engines, not a proxy for CONNECT", close=True)
    if request.target[:1] != b"/":
        request.target = _origin_form(request.target, request.method)


def _check_duplicates(request: Request) -> None:
    seen = set()
    for lower, name, _ in request.headers:
        if lower in seen and lower in _ONCE:
            raise RequestFault(400, "duplicate_header", f"header {_shown(name)} is there twice", close=True)
        seen.add(lower)
    if b"connection" in seen:  # a list, which may stand in several lines (RFC 9110, 5.3)
        request.fields[b"connection"] = b",".join(value for name, _, value in request.headers if name == b"connection")


def _check_transfer(request: Request) -> None:
    fields = request.fields
    if (coding := fields.get(b"transfer-encoding")) is not None:
        if request.http_1_0:
            raise RequestFault(400, "transfer_encoding", "HTTP/1.0 has no Transfer-Encoding", close=True)
        if coding.strip().lower() != b"chunked":
            message = f"Transfer-Encoding {_shown(coding)} is not supported; only chunked is"
            raise RequestFault(501, "transfer_encoding", message, close=True)
    if (expect := fields.get(b"expect")) is not None and expect.lower() != b"100-continue":
        raise RequestFault(417, "expectation", f"Expect: {_shown(expect)} is not supported", close=True)


def body_too_large(body_bytes_max: int) -> RequestFault:
    """413 with the limit's name."""
    message = f"the body is over {body_bytes_max} bytes (limits.body_bytes)"
    return RequestFault(413, "body_too_large", message, close=True)


def _origin_form(target: bytes, method: bytes) -> bytes:
    """The path of an absolute target (`GET http://host/path`), which servers must accept (RFC 9112, 3.2.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target
    try:
        parts = urlsplit(target)
    except ValueError:  # half an IPv6 address
        parts = None
    if parts is None or parts.scheme not in (b"http", b"https"):
        raise RequestFault(400, "target", f"the request target {_shown(target)} is no path", close=True)
    path = parts.path or b"/"
    return path + b"?" + parts.query if parts.query else path


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
