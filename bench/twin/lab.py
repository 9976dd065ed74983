"""Clients of one simulated engine in virtual time: what a load generator does, without sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin.content import Piece, runs_of_pieces
from backends.twin.engine import TwinEngine
from backends.twin.request import Finished, FirstToken, Request
from backends.twin.virtual import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.twin.calibration import Calibration
    from backends.twin.request import Event


class Sent:
    """One request of a client, with the times that the client sees."""

    def __init__(self, request: Request, sent_at: float, done: Callable[[Sent], None] | None) -> None:
        self.request = request
        self.sent_at = sent_at
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.done = done

    @property
    def latency_seconds(self) -> float:
        """From sending to the last token. AssertionError before it is there."""
        assert self.finished_at is not None
        return self.finished_at - self.sent_at


class Lab:
    """An engine in virtual time and its clients."""

    def __init__(self, calibration: Calibration) -> None:
        self.engine = TwinEngine(calibration)
        self.time = VirtualTime()
        self.time.add(self.engine, self._see)
        self.sent: list[Sent] = []
        self._count = 0
        self._by_id: dict[str, Sent] = {}

    @property
    def now(self) -> float:
        """Virtual time in seconds."""
        return self.time.now

    @property
    def joules(self) -> float:
        """Energy since the start, up to now."""
        return self.engine.meter.joules

    def run(self, until: float | None = None) -> None:
        """Go on until this time, or until nothing is left to do."""
        self.time.run(until)

    def send(
        self,
        prompt_tokens: int,
        output_tokens: int,
        *,
        prefix: Sequence[Piece] = (),
        done: Callable[[Sent], None] | None = None,
    ) -> Sent:
        """Send a request now: the shared pieces of `prefix` and for the rest tokens of its own."""
        self._count += 1
        name = f"r{self._count}"
        own = prompt_tokens + output_tokens - sum(piece.tokens for piece in prefix)
        block = self.engine.calibration.engine.block_tokens
        request = Request(name, prompt_tokens, output_tokens, runs_of_pieces([*prefix, Piece(name, own)], block))
        sent = self._by_id[name] = Sent(request, self.now, done)
        self.sent.append(sent)
        self.engine.submit(request, self.now)
        return sent

    def _see(self, event: Event) -> None:
        sent = self._by_id.get(event.request.id)
        if sent is None:
            return  # aborted
        if isinstance(event, FirstToken):
            sent.first_token_at = event.at
        elif isinstance(event, Finished):
            del self._by_id[event.request.id]
            sent.finished_at = event.at
            if sent.done is not None:
                sent.done(sent)

    def abort(self, sent: Sent) -> None:
        """The client leaves."""
        self._by_id.pop(sent.request.id, None)
        self.engine.abort(sent.request.id, self.now)

    def closed_loop(self, clients: int, requests: int, send: Callable[[Callable[[Sent], None]], Sent]) -> list[Sent]:
        """So many clients send so many requests together, each its next when its last is answered; all answered."""
        sent: list[Sent] = []

        def next_one(_: Sent | None = None) -> None:
            if len(sent) < requests:
                sent.append(send(next_one))

        for _ in range(min(clients, requests)):
            next_one()
        self.run()
        return sent
