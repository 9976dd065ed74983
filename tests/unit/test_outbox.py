"""Writes of a busy event loop go out together at the end of a turn, in their order; of an idle one, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from backends.vllm import outbox as module
from backends.vllm.outbox import AT_ONCE_BYTES, BUSY_WRITES, TURN_WRITES_MIN, Outbox


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


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


Log = list[tuple[str, bytes]]


def play(script: Callable[[Outbox, Any, Any, Log], None], *, busy: bool = True) -> Log:
    """What was written by the end of the next turn; `busy`: the loop has been busy before."""
    log: Log = []

    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        a, b = (cast(asyncio.Transport, Sink(log, name)) for name in "ab")
        if busy:
            for _ in range(BUSY_WRITES + 1):
                outbox.write(a, b"")
            log.clear()
        script(outbox, a, b, log)
        await asyncio.sleep(0)

    asyncio.run(main())
    return log


def test_an_idle_loop_writes_at_once(clock: Clock) -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: Log) -> None:
        for number in range(3 * BUSY_WRITES):
            clock.now += 0.001
            outbox.write(a, b"%d" % number)
            assert len(log) == number + 1

    play(script, busy=False)


def test_a_busy_loop_writes_at_the_end_of_the_turn_in_order(clock: Clock) -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: Log) -> None:
        outbox.write(a, b"1")
        outbox.write(b, b"2")
        outbox.write(a, b"3")
        assert log == []

    assert play(script) == [("a", b"1"), ("b", b"2"), ("a", b"3")]


def test_it_goes_back_to_writing_at_once_when_turns_have_few_writes(clock: Clock) -> None:
    log: Log = []

    async def main(writes: int) -> bool:
        outbox = Outbox(asyncio.get_running_loop())
        sink = cast(asyncio.Transport, Sink(log, "a"))
        for _ in range(BUSY_WRITES + 1):
            outbox.write(sink, b"")
        for _ in range(writes):
            outbox.write(sink, b"")
        await asyncio.sleep(0)
        log.clear()
        outbox.write(sink, b"now?")
        return bool(log)

    assert asyncio.run(main(TURN_WRITES_MIN - 1))
    assert not asyncio.run(main(TURN_WRITES_MIN))


def test_a_flush_writes_at_once_and_only_once(clock: Clock) -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: Log) -> None:
        outbox.write(a, b"1")
        outbox.flush()
        assert log == [("a", b"1")]

    assert play(script) == [("a", b"1")]


def test_much_at_once_goes_out_at_once_behind_what_waits(clock: Clock) -> None:
    large = bytes(AT_ONCE_BYTES)

    def script(outbox: Outbox, a: Any, b: Any, log: Log) -> None:
        outbox.write(b, b"1")
        outbox.write(a, large)
        assert log == [("b", b"1"), ("a", large)]

    play(script)


def test_a_transport_that_is_closed_meanwhile_is_not_written_to(clock: Clock) -> None:
    def script(outbox: Outbox, a: Any, b: Any, log: Log) -> None:
        outbox.write(a, b"1")
        outbox.write(b, b"2")
        a.closing = True

    assert play(script) == [("b", b"2")]
