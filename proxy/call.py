"""What the gateway knows of one model request while it lives, and what is said of it when it ends."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.identity import Identity


class Outcome(StrEnum):
    """How a call ended; one of these is counted for each call, whatever happened to it."""

    OK = "ok"
    """The engine's whole answer, status below 400, reached the client."""
    ENGINE_4XX = "engine_4xx"
    ENGINE_5XX = "engine_5xx"
    """The engine answered with an error status; its words reached the client."""
    REFUSED = "refused"
    """The gateway answered instead of an engine; `Call.reason` says why."""
    CLIENT_GONE = "client_gone"
    ENGINE_LOST = "engine_lost"
    """The engine could not be reached, reset the connection, or ended its answer early."""
    TIMEOUT = "timeout"


class Call:
    """One request. Times are seconds of the monotonic clock; None = has not happened.

    Token counts are None when the engine did not report them: never 0 for unknown. What `__init__` does not set has its
    default in the class: one is made for each request, and most requests set few of these.
    """

    key_name: str = "-"
    model: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    engine: str | None = None
    attempts: int = 0
    dispatched_at: float | None = None
    sent_at: float | None = None
    """When the request was written to an engine's socket (after any connect)."""
    first_byte_at: float | None = None
    """First byte of the answer's body: for a stream the first event."""
    finished_at: float | None = None
    overhead_seconds: float = 0.0
    """The gateway's own work from the whole request to the engine's socket, without holding and connecting."""
    status: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    """A machine-readable word for every outcome but `ok`; also sent as `x-joulegate-reason`."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    response_bytes: int = 0
    response_chunks: int = 0
    """Reads of the engine's answer; of a stream its events, about one a token."""
    prompt_text: bytes | None = None
    """The request body, kept only where the operator asked for prompts in the log."""
    trace: object | None = None
    """The tracing module's open span, if tracing is on."""

    def __init__(
        self,
        call_id: str,
        request_id: str,
        method: str,
        path: str,
        route: str,
        arrived_at: float,
        arrived_unix_seconds: float,
        identity: Identity,
        policy: str = "-",
        request_bytes: int = 0,
    ) -> None:
        self.id = call_id
        """The gateway's own name of the call, unique in this process."""
        self.request_id = request_id
        """`x-request-id`: the client's, else made here."""
        self.method = method
        self.path = path
        self.route = route
        """The path's label in metrics: one of a fixed set, `other` for any other engine path."""
        self.arrived_at = arrived_at
        """When the request's last byte was read."""
        self.arrived_unix_seconds = arrived_unix_seconds
        self.identity = identity
        self.policy = policy
        self.request_bytes = request_bytes

    @property
    def held_seconds(self) -> float | None:
        """How long the scheduler kept the call back."""
        return None if self.dispatched_at is None else self.dispatched_at - self.arrived_at
