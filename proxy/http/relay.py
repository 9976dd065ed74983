"""Header rules of both directions, and the framing of an answer on its way to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote_from_bytes

from backends.vllm.connection import ProtocolFault
from proxy.errors import status_line
from proxy.identity import OWN_HEADERS

if TYPE_CHECKING:
    from backends.vllm.connection import EngineConnection
    from proxy.http.request import Request

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
"""RFC 9110, 7.6.1: meant for the next hop only."""
_REPLACED = frozenset((b"host", b"content-length", b"expect", b"x-request-id"))
"""Written anew by the gateway."""
NOT_FORWARDED = HOP_BY_HOP | _REPLACED | OWN_HEADERS
"""Names of request headers that never reach an engine as the client sent them."""


CHUNKED_END = b"0\r\n\r\n"


def request_fields(request: Request, dropped: frozenset[bytes]) -> bytes:
    """The header lines for the engine: the client's, less `dropped` (NOT_FORWARDED and more) and hop-by-hop ones."""
    if (named := request.fields.get(b"connection")) is not None:  # the names it lists are hop-by-hop as well
        dropped = dropped.union(name.strip().lower() for name in named.split(b","))
    return b"".join([b"%b: %b\r\n" % (name, value) for lower, name, value in request.headers if lower not in dropped])


class AnswerHead(NamedTuple):
    """The head of an answer for the client, and what it says about the body."""

    data: bytes
    chunked: bool
    """The body goes out in chunks; else as it is, up to its length or the end of the connection."""
    keep_alive: bool
    content_type: bytes
    encoded: bool
    """The body is compressed."""
    trailers: bool = False
    """Header lines may follow the last chunk."""


def takes_trailers(request: Request) -> bool:
    """RFC 9110, 6.5.1: whether its client will look at header lines behind the body."""
    te = request.fields.get(b"te")
    return te is not None and b"trailers" in [part.partition(b";")[0].strip() for part in te.lower().split(b",")]


def answer_head(
    engine: EngineConnection, request: Request, ours: bytes, request_id: bytes, trailer: bytes = b""
) -> AnswerHead:
    """The engine's head, less hop-by-hop headers, plus ours. `request_id`: x-request-id, if the engine sent none;
    `trailer`: the line that announces trailers, where there will be some if the client takes them.

    Raises ProtocolFault for a body that is coded in a way that the client would not be told of.
    """
    lines = [status_line(engine.status)]
    has_length = has_request_id = encoded = False
    content_type = named = b""
    for name, value in engine.headers:
        lower = name.lower()
        if lower in HOP_BY_HOP:
            if lower == b"connection":
                named = named + b"," + value if named else value
            elif lower == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise ProtocolFault(f"Transfer-Encoding {value[:100]!r}, which nobody asked for")
            continue
        if lower == b"content-length":
            has_length = True
        elif lower == b"content-type":
            content_type = value
        elif lower == b"x-request-id":
            has_request_id = True
        elif lower == b"content-encoding":
            encoded = True
        lines.append(b"%b: %b\r\n" % (name, value))
    if named and named.lower() not in (b"close", b"keep-alive"):
        hop = {part.strip().lower() for part in named.split(b",")} - {b"content-length"}  # the framing is not theirs
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0].lower() not in hop]
    if not has_request_id:
        lines.append(request_id)
    lines.append(ours)
    keep_alive, chunked, trailers = request.keep_alive, False, False
    if not has_length and request.method != b"HEAD" and engine.status not in (204, 304):
        if request.http_1_0:
            keep_alive = False  # the end of the connection is the end of the body
        else:
            chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
            if trailer and takes_trailers(request):
                trailers = True
                lines.append(trailer)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return AnswerHead(b"".join(lines), chunked, keep_alive, content_type, encoded, trailers)


def safe_value(value: str) -> bytes:
    """A header value that cannot end its line: ids come from JSON bodies too."""
    if value.isascii() and value.isprintable():
        return value.encode("ascii")
    return quote_from_bytes(value.encode("utf-8", "replace"), safe="/:@!$&'()*+,;=-._~ ").encode("ascii")
