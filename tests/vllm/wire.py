"""HTTP as bytes: ask, keep what came back exactly, and compare two answers with only ids and times set aside."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.vllm.children import SERVED_NAME, wait_until

TIMEOUT_SECONDS = 60.0

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"),
        *("proxy-authenticate", "proxy-authorization"),
    }
)
OURS = re.compile(r"x-(workflow|joulegate|energy)-")
"""Headers that only a gateway adds."""

VOLATILE = (
    (re.compile(rb'"(created|created_at|completed_at)":\d+(\.\d+)?'), rb'"\1":0'),
    (re.compile(rb'"(chatcmpl-tool|call)[_-][0-9a-f]{8,}"'), rb'"\1"'),
    (re.compile(rb'"(resp|msg|rs|modelperm)[_-][0-9a-f]{8,}"'), rb'"\1"'),
)
"""The bytes that differ between two equal calls with the same x-request-id: clock and ids that vLLM draws."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; the body's chunked framing is undone, nothing else."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, None if absent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def comparable_headers(self) -> list[tuple[str, str]]:
        """All headers but hop-by-hop ones, the date, the request id and those that only a gateway adds."""
        dropped = HOP_BY_HOP | {"date", "x-request-id"}
        pairs = [(key.lower(), value) for key, value in self.headers]
        return sorted((key, value) for key, value in pairs if key not in dropped and not OURS.match(key))

    @property
    def comparable_body(self) -> bytes:
        """The body with clock and drawn ids set to fixed values."""
        body = self.body
        for pattern, replacement in VOLATILE:
            body = pattern.sub(replacement, body)
        return body


def connect(base_url: str, patience_seconds: float = TIMEOUT_SECONDS) -> HTTPConnection:
    """A connection to a base URL's host; TimeoutError where so long nothing comes."""
    parts = urlsplit(base_url)
    return HTTPConnection(parts.hostname or "", parts.port, timeout=patience_seconds)


def _payload(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def send(
    base_url: str,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    patience_seconds: float = TIMEOUT_SECONDS,
) -> HTTPConnection:
    """Send a request and return its connection without waiting for an answer. `body`: bytes, None, or JSON's value."""
    connection = connect(base_url, patience_seconds)
    kind = {"content-type": "application/json"} if body is not None else {}
    connection.request(method, path, _payload(body), {**kind, **(headers or {})})
    return connection


def receive(connection: HTTPConnection) -> Answer:
    """Read the whole answer and close."""
    try:
        response = connection.getresponse()
        return Answer(response.status, response.reason, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


def ask(base_url: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """One request, one whole answer."""
    return receive(send(base_url, method, path, body, headers))


def chat_body(content: str = "hi", **more: Any) -> dict[str, Any]:
    """A chat request that answers the same each time."""
    messages = [{"role": "user", "content": content}]
    return {"model": SERVED_NAME, "messages": messages, "max_tokens": 4, "temperature": 0, **more}


class OpenStream:
    """A streamed call whose events are read one at a time, and which can be left in the middle."""

    def __init__(
        self,
        base_url: str,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        patience_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.request_id = uuid.uuid4().hex
        named = {"x-request-id": self.request_id, **(headers or {})}
        self.connection = send(base_url, "POST", path, {**body, "stream": True}, named, patience_seconds)
        self.socket = self.connection.sock
        self.response: HTTPResponse | None = None

    def __enter__(self) -> OpenStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def events(self) -> Iterator[bytes]:
        """The `data:` payloads until the answer ends, `[DONE]` included."""
        if self.response is None:
            self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()
        for line in self.response:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").rstrip(b"\n")

    def leave(self) -> None:
        """Close the socket, as a client does that goes away; a second time does nothing. Another thread that reads it
        comes back first."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self.response is not None:
            self.response.close()
        self.connection.close()


def gauge(engine_url: str, name: str) -> float:
    """The sum of one of vLLM's gauges over its labels; KeyError if vLLM does not show it."""
    return gauge_in(ask(engine_url, "GET", "/metrics").body.decode(), name)


def gauge_in(text: str, name: str) -> float:
    """The same, of a page that was read."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    if not values:
        raise KeyError(name)
    return sum(map(float, values))


def running(engine_url: str) -> float:
    """How many requests vLLM computes now."""
    return gauge(engine_url, "vllm:num_requests_running")


def waiting(engine_url: str) -> float:
    """How many requests vLLM holds in its queue now."""
    return gauge(engine_url, "vllm:num_requests_waiting")


def load(engine_url: str) -> tuple[float, float]:
    """How many requests vLLM computes and holds in its queue, both of one moment."""
    text = ask(engine_url, "GET", "/metrics").body.decode()
    return gauge_in(text, "vllm:num_requests_running"), gauge_in(text, "vllm:num_requests_waiting")


def wait_running(engine_url: str, count: int, seconds: float = 60) -> float:
    """Seconds until vLLM computes exactly that many requests."""
    seen = set()

    def reached() -> bool:
        now = running(engine_url)
        seen.add(now)
        return now == count

    try:
        return wait_until(reached, seconds, f"{count} calls run in vLLM")
    except AssertionError as error:
        raise AssertionError(f"{error}; seen: {sorted(seen)}, waiting: {waiting(engine_url)}") from None


def finished(engine_url: str) -> float:
    """How many requests vLLM has answered to their end so far; those whose clients left are not among them."""
    return gauge(engine_url, "vllm:request_success_total")


def wait_idle(engine_url: str, seconds: float) -> float:
    """Seconds until vLLM neither computes nor holds anything."""
    return wait_until(
        lambda: running(engine_url) + waiting(engine_url) == 0, seconds, "vLLM has nothing running or waiting"
    )
