"""Writes of one turn of the event loop go out together, in their order."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from backends.vllm.outbox import AT_ONCE_BYTES, Outbox


class Sink:
    """A transport as far as it is written to."""

    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        self.log = log
        self.name = name
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.log.append((self.name, data))


def play(script: Any) -> list[tuple[str, bytes]]:
    log: list[tuple[str, bytes]] = []

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        sinks = [cast(asyncio.Transport, Sink(log, name)) for name in "ab"]
        script(outbox, *sinks, log)
        await asyncio.sleep(0)

    asyncio.run(main())
    return log


def test_what_is_written_waits_for_the_end_of_the_turn_and_keeps_its_order() -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: list[Any]) -> None:
        outbox.write(a, b"1")
        outbox.write(b, b"2")
        outbox.write(a, b"3")
        assert log == []

    assert play(script) == [("a", b"1"), ("b", b"2"), ("a", b"3")]


def test_a_flush_writes_at_once_and_only_once() -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: list[Any]) -> None:
        outbox.write(a, b"1")
        outbox.flush()
        assert log == [("a", b"1")]

    assert play(script) == [("a", b"1")]


def test_much_at_once_goes_out_at_once_behind_what_waits() -> None:
    large = bytes(AT_ONCE_BYTES)

    def script(outbox: Outbox, a: Any, b: Any, log: list[Any]) -> None:
        outbox.write(b, b"1")
        outbox.write(a, large)
        assert log == [("b", b"1"), ("a", large)]

    play(script)


def test_a_transport_that_is_closed_meanwhile_is_not_written_to() -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: list[Any]) -> None:
        outbox.write(a, b"1")
        outbox.write(b, b"2")
        a.closing = True

    assert play(script) == [("b", b"2")]
