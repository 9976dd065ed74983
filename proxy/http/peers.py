"""The two sides of a call under way: who waits for its answer, and who writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.keys import Authorized


class Answering(Protocol):
    """The answering of one request; the client's side tells it what happens there meanwhile."""

    def client_gone(self) -> None:
        """The client closed its connection. Nothing can be written any more."""

    def pause(self) -> None:
        """The client reads slower than we write: stop for now."""

    def resume(self) -> None:
        """The client has caught up."""


class Client(Protocol):
    """Whoever waits for an answer: a connection (`proxy.http.connection`), or the gateway itself (`proxy.inner`)."""

    exchange: Answering | None
    authorized: Authorized | None
    """The valid key that this client sent last."""
    write_paused: bool
    """The client reads slower than it is written to."""

    @property
    def on_sent(self) -> Callable[[], None] | None:
        """To be called when its request has been written to an engine."""

    def write(self, data: bytes) -> None:
        """Bytes of the present answer, head included, as HTTP/1.1 frames them."""

    def answered(self, *, keep_alive: bool) -> None:
        """The present answer is written whole."""

    def abort(self, *, reset: bool = False) -> None:
        """The answer cannot be completed, and must not look as if it were. `reset`: even to HTTP/1.0."""
