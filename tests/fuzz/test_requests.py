"""Whatever a client sends, cut anywhere: is each answer HTTP, and does an engine see only what was sent?"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import EngineRequest
from tests.fuzz.oracle import check_answers, check_engine
from tests.fuzz.requests import CUTS, SMUGGLED, good_streams, streams
from tests.fuzz.stage import BODY_MAX, FEW, Stage, cut
from tests.fuzz.wire import Reading, read_requests

LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nhost: x\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: a\r\n"
EXAMPLES = settings(
    max_examples=700,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


async def respond(request: EngineRequest) -> None:
    """Answers of both framings, by the target's length."""
    if request.method != "HEAD" and len(request.target) % 2:
        await request.begin_stream("application/json")
        await request.chunk(b'{"fine":true}')
        await request.end_stream()
    else:
        await request.answer(b"" if request.method == "HEAD" else b'{"fine":true}')


def led_to_its_end(data: bytes) -> tuple[bytes, Reading]:
    """The stream with what it still needs, so that the gateway closes behind it and nobody waits in vain."""
    while (reading := read_requests(data, BODY_MAX)).end == "short":
        data += reading.completion
    if reading.end == "clean":
        reading = read_requests(data + LAST, BODY_MAX)
    return data + LAST, reading  # behind a fault or a last request it is nobody's


async def play(stage: Stage, data: bytes, reading: Reading, at: list[int] | None) -> list[int]:
    """Send it all, read to the end, and look at both sides; returns the statuses of the answers."""
    stage.engine.got.clear()
    client = await stage.connect()
    await client.send(cut(data, at))
    await client.closed.wait()
    statuses = check_answers(bytes(client.received), reading, cut_off=client.reset)
    await stage.check()
    check_engine(stage.engine.got, reading)
    return statuses


def test_any_stream_is_answered_and_passed_on_as_it_was_meant(capfd: pytest.CaptureFixture[str]) -> None:
    with Stage(respond, limits=FEW) as stage:

        @EXAMPLES
        @given(streams(), CUTS)
        @example(GET.replace(b"GET", b"CONNECT") + b"\r\n", [])
        @example(GET.replace(b"/a", b"http://[/") + b"\r\n", [])
        @example((GET + UPGRADE + b"\r\n") * 600, [])
        @example(GET + UPGRADE + b"\r\n" + b"GET / HTTP/1.1\r\n\r\n", [])
        @example(GET + UPGRADE.replace(b"upgrade\r\n", b"x-a, close, upgrade\r\n", 1) + b"x-a: 1\r\n\r\n", [])
        @example((GET + UPGRADE + b"\r\n").replace(b"1.1", b"1.0"), [])
        @example(b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + SMUGGLED, [])
        @example(GET + b"connection: x-a\r\nconnection: x-b\r\nx-a: 1\r\n\r\n", [])
        @example(GET.replace(b"GET", b"HEAD") + b"x-workflow-final: maybe\r\n\r\n", [])
        def fuzz(stream: bytes, at: list[int] | None) -> None:
            data, reading = led_to_its_end(stream)
            stage.run(play(stage, data, reading, at))
            assert capfd.readouterr() == ("", "")

        fuzz()


def test_good_requests_all_get_through(capfd: pytest.CaptureFixture[str]) -> None:
    with Stage(respond, limits=FEW) as stage:

        @settings(EXAMPLES, max_examples=200)
        @given(good_streams(), CUTS)
        def fuzz(stream: bytes, at: list[int] | None) -> None:
            data, reading = led_to_its_end(stream)
            assert reading.end == "last"
            assert stage.run(play(stage, data, reading, at)) == [200] * len(reading.requests)
            assert len(stage.engine.got) == len(reading.requests)
            assert capfd.readouterr() == ("", "")

        fuzz()


def test_clients_that_leave_anywhere_leave_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    async def leave(stage: Stage, data: bytes, at: list[int] | None, abort: bool) -> None:
        stage.engine.got.clear()
        client = await stage.connect()
        await client.send(cut(data, at))
        client.transport.abort() if abort else client.transport.close()
        await stage.check()
        check_engine(stage.engine.got, read_requests(data, BODY_MAX))

    with Stage(respond, limits=FEW) as stage:

        @settings(EXAMPLES, max_examples=200)
        @given(streams(), CUTS, st.integers(0, 1 << 13), st.booleans())
        @example(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc", [], -1, False)
        def fuzz(stream: bytes, at: list[int] | None, end: int, abort: bool) -> None:
            stage.run(leave(stage, stream[: end % (len(stream) + 1)], at, abort))
            assert capfd.readouterr() == ("", "")

        fuzz()
