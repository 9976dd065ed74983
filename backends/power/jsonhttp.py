"""How does a device over HTTP ask? One kept connection, TCP or Unix socket, JSON, with a limit on all of it.

It blocks: devices are read from threads.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from backends.power.device import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_BYTES_MAX = 262_144
TIMEOUT_SECONDS = 1.0
SET_TIMEOUT_SECONDS = 5.0
_STALE = (http.client.RemoteDisconnected, http.client.CannotSendRequest, ConnectionResetError, BrokenPipeError)


class Reply(NamedTuple):
    """An answer: its status, and its body if that was JSON."""

    status: int
    body: Any
    text: str

    def message(self) -> str:
        """What it says went wrong, shortly."""
        body = self.body
        if isinstance(body, dict):
            for key in ("error", "errors", "message", "detail"):
                if body.get(key):
                    found = body[key]
                    return str(found.get("message", found) if isinstance(found, dict) else found)[:300]
        return self.text[:300].strip()


class JsonHttp:
    """A peer at http://HOST:PORT[/PREFIX], or at unix:/PATH."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self.address = address
        self._headers = {"accept": "application/json", **(headers or {})}
        self._socket_path = ""
        self._prefix = ""
        if address.startswith(("unix:", "/")):
            self._socket_path = address.removeprefix("unix:")
            self._host, self._port, self._tls = "localhost", 0, False
        else:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{address!r}: must be like http://host:port or unix:/path")
            self._host, self._tls = parts.hostname, parts.scheme == "https"
            self._port = parts.port or (443 if self._tls else 80)
            self._prefix = parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        """A card is read by one thread and set by another."""

    def get(self, path: str, what: str) -> Reply:
        """GET. Unavailable if nobody answers, or at too great length."""
        return self._ask("GET", path, None, what, TIMEOUT_SECONDS)

    def post(self, path: str, body: object | None, what: str, *, method: str = "POST") -> Reply:
        """POST a JSON body, or none. It is never sent twice."""
        return self._ask(method, path, body, what, SET_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: object | None, what: str, timeout: float) -> Reply:
        with self._lock:
            return self._ask_alone(method, path, body, what, timeout)

    def _ask_alone(self, method: str, path: str, body: object | None, what: str, timeout: float) -> Reply:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "content-type": "application/json"}
        # A kept connection may have been closed by the peer meanwhile. Readings are asked again on a new one.
        kept = self._connection is not None and method == "GET"
        if method != "GET":
            self.close()
        try:
            try:
                return self._once(method, path, data, headers, timeout)
            except _STALE:
                self.close()
                if not kept:
                    raise
                return self._once(method, path, data, headers, timeout)
        except TimeoutError as error:
            self.close()
            raise Unavailable(what, "unreachable", f"{self.address} did not answer within {timeout:g} s") from error
        except PermissionError as error:
            self.close()
            raise Unavailable(what, "no_permission", f"{self.address}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(what, "unreachable", f"{self.address}: {error!r}"[:300]) from error

    def _once(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], timeout: float) -> Reply:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect(timeout)
        connection.request(method, self._prefix + path, body=data, headers=dict(headers))
        answer = connection.getresponse()
        content = answer.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX:
            raise http.client.HTTPException(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        text = content.decode(errors="replace")
        try:
            return Reply(answer.status, json.loads(text), text)
        except (ValueError, RecursionError):
            return Reply(answer.status, None, text)

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._socket_path:
            return _UnixConnection(self._socket_path, timeout)
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise
