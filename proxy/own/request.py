"""One request that the gateway answers itself: what it asks for, and how its answer is written."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from proxy.call import Outcome
from proxy.errors import RequestFault, error_answer, error_object, status_line
from proxy.http.relay import CHUNKED_END
from proxy.jsonsize import over

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from proxy.call import Call
    from proxy.gateway import Gateway
    from proxy.http.peers import Client
    from proxy.http.request import Request

    Headers = Iterable[tuple[bytes, bytes]]

_COMPLEX_BYTES = 65_536
_QUERY_FIELDS = 64


class OwnRequest:
    """Handlers are given one and end it by one of `answer…`, `fail`, or after `begin_stream` `end` or `abort`."""

    def __init__(self, gateway: Gateway, client: Client, request: Request, call: Call, key_name: str) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self._streaming = b""
        """What kind of stream has begun."""
        self.call = call
        self.key_name = key_name
        """"-" where no keys are configured."""
        self.params: dict[str, str] = {}
        """The named parts of the path."""
        self.over = False
        self.task: asyncio.Task[None] | None = None
        """Runs the handler; cancelled when the client goes."""
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        """The client of a stream reads slowly; it has caught up."""

    # --- what is asked for ---

    @property
    def method(self) -> str:
        """GET, POST …"""
        return self.call.method

    @property
    def body(self) -> bytes:
        """The body as it came."""
        return self._request.body

    def header(self, name: bytes) -> str | None:
        """A header's value, by lowercase name."""
        value = self._request.fields.get(name)
        return None if value is None else value.decode("latin-1")

    def query(self) -> dict[str, str]:
        """The query's parameters; of several with one name the last. RequestFault 400 if there are too many."""
        text = self._request.target.partition(b"?")[2].decode("latin-1")
        try:
            found = parse_qs(text, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
        except ValueError:
            raise RequestFault(400, "invalid_query", f"the query has over {_QUERY_FIELDS} parameters") from None
        return {name: values[-1] for name, values in found.items()}

    def json(self, largest: str | None = None) -> dict[str, Any]:
        """The body as a JSON object. RequestFault for anything else. `largest`: the member that makes it large, if
        any does."""
        data = self._request.body
        limit = self._gateway.server.limits.json_values
        if len(data) > _COMPLEX_BYTES and over(data, limit):
            message = f"the body has over {limit} values (limits.json_values)"
            raise RequestFault(413, "body_too_complex", message, param=largest)
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise RequestFault(400, "invalid_json", f"the body is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise RequestFault(400, "invalid_body", f"the body must be a JSON object, not {type(body).__name__}")
        return body

    def let_go_of_body(self) -> None:
        """Nothing of the body is needed any more, while the answer may take hours: make room for others' bodies."""
        self._gateway.server.release_bytes(len(self._request.body))
        self._request.body = b""

    # --- the answer ---

    @property
    def write_paused(self) -> bool:
        """The client reads slower than it is written to."""
        return self._client.write_paused

    def answer_json(self, value: Any, status: int = 200, headers: Headers = (), reason: str | None = None) -> None:
        """Answer with a JSON body. `reason`: the machine-readable word, if it is an error."""
        self.answer(orjson.dumps(value), status=status, headers=headers, reason=reason)

    def answer(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Headers = (),
        reason: str | None = None,
    ) -> None:
        """Answer with a whole body."""
        if self.over:
            return
        keep_alive = self._keep_alive()
        head = self._head(status, content_type, b"content-length: %d\r\n" % len(body), headers, keep_alive)
        self._client.write(head if self._request.method == b"HEAD" else head + body)
        self._finish(Outcome.OK if status < 400 else Outcome.REFUSED, status, reason)
        self._client.answered(keep_alive=keep_alive)

    def fail(self, fault: RequestFault) -> None:
        """Answer with an error. Among events it is an event, and the stream ends; any other stream breaks off."""
        if self.over:
            return
        if self._streaming == b"text/event-stream":
            self.call.reason = fault.reason
            self.send(
                b"event: error\ndata: %b\n\n" % error_object(fault.status, fault.reason, fault.message, fault.param)
            )
            self.end()
            return
        if self._streaming:
            self.abort(fault.reason)
            return
        keep_alive = self._keep_alive() and not fault.close
        extra = self._gateway.error_headers(self.call)
        head_only = self._request.method == b"HEAD"
        self._client.write(error_answer(fault, extra, close=not keep_alive, head_only=head_only))
        self._finish(Outcome.REFUSED, fault.status, fault.reason)
        self._client.answered(keep_alive=keep_alive)

    def begin_stream(self, content_type: bytes = b"text/event-stream; charset=utf-8", headers: Headers = ()) -> None:
        """Begin an answer whose length is not known."""
        self._streaming = content_type.partition(b";")[0]
        chunked = b"" if self._request.http_1_0 else b"transfer-encoding: chunked\r\n"
        self._client.write(self._head(200, content_type, chunked, headers, self._keep_alive() and bool(chunked)))

    def send(self, data: bytes) -> None:
        """A piece of the stream."""
        if data and not self.over:
            self._client.write(data if self._request.http_1_0 else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The stream is complete."""
        if self.over:
            return
        if not self._request.http_1_0:
            self._client.write(CHUNKED_END)
        keep_alive = self._keep_alive()
        self._finish(Outcome.OK, 200, self.call.reason)
        self._client.answered(keep_alive=keep_alive)

    def abort(self, reason: str) -> None:
        """The stream cannot be completed, and must not look as if it were: its connection breaks off."""
        if self.over:
            return
        self._finish(Outcome.REFUSED, self.call.status, reason)
        self._client.abort(reset=self._request.http_1_0)

    # --- the client's side (Answering) ---

    def client_gone(self) -> None:
        self._finish(Outcome.CLIENT_GONE, self.call.status, "client_gone")
        if self.task is not None:
            self.task.cancel()

    def pause(self) -> None:
        if self.on_pause is not None:
            self.on_pause()

    def resume(self) -> None:
        if self.on_resume is not None:
            self.on_resume()

    # --- inside ---

    def _keep_alive(self) -> bool:
        request = self._request
        return request.keep_alive and not request.http_1_0 and not self._gateway.server.draining

    def _head(
        self,
        status: int,
        content_type: bytes,
        framing: bytes,
        headers: Headers,
        keep_alive: bool,
    ) -> bytes:
        self.call.status = status
        return b"".join(
            [
                status_line(status),
                b"content-type: %b\r\n" % content_type,
                framing,
                b"x-request-id: %b\r\n" % self.call.request_id.encode("latin-1"),
                *[b"%b: %b\r\n" % header for header in headers],
                b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            ]
        )

    def _finish(self, outcome: Outcome, status: int | None, reason: str | None) -> None:
        if self.over:
            return
        self.over = True
        call = self.call
        call.outcome, call.status, call.reason = outcome, status, reason
        call.finished_at = monotonic()
        self._gateway.own_ended(len(self._request.body), call)
        self._request.body = b""
