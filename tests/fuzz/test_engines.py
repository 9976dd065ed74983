"""Whatever an engine answers, cut and broken off anywhere: does its client get HTTP, and never a false end?"""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import EngineRequest
from tests.fuzz.answers import STRANGE_USAGE, Script, scripts
from tests.fuzz.oracle import DROPPED
from tests.fuzz.stage import INNOCENT, Stage, complete_answer, cut
from tests.fuzz.wire import Bad, Message

CHAT = b'{"model":"m","messages":[],"stream":true}'
ASKED = {
    "GET": b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "HEAD": b"HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n",
    "1.0": b"GET /a HTTP/1.0\r\nhost: x\r\n\r\n",
    "stream": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(CHAT), CHAT),
}
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
CODED = b"content-type: text/event-stream; charset=utf-8\r\ncontent-encoding: gzip\r\n"
SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
FINGERPRINTS = (None, b"", b'"system_fingerprint":"vllm-1"')
LOST = ("engine_reset", "engine_protocol")


def first_answer(script: Script, asked: str, *, closed: bool) -> Message | None:
    """The answer that the script begins with, if it is a good and complete one."""
    try:
        return complete_answer(script.data, 0, head_only=asked == "HEAD", closed=closed)
    except Bad:
        return None


async def perform(request: EngineRequest, script: Script, asked: str) -> None:
    """Do what the script says. Where there would be no end, the connection is closed: nobody waits in vain."""
    for piece in cut(script.data, script.at):
        if request.writer.transport.is_closing():  # the gateway has heard enough
            raise ConnectionResetError
        request.writer.write(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    if script.end == "reset" and not request.writer.transport.is_closing():
        # abort() alone may look like the regular end of an answer.
        linger = struct.pack("ii", 1, 0)
        request.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.reset()
    if script.end != "stay" or first_answer(script, asked, closed=False) is None:
        raise ConnectionResetError  # the harness closes


def check_answer(got: Message | None, script: Script, asked: str) -> None:
    """The client's answer is the engine's, or says that there is none, or is cut so that everybody sees it."""
    first = first_answer(script, asked, closed=script.end != "reset")
    certain = first is not None and first.end == len(script.data) and script.end != "reset"
    if got is None:
        assert not certain, "a good answer was cut"
        return
    if asked == "1.0":
        assert not got.values(b"transfer-encoding")
    if script.stream is not None:
        assert got.body.count(b"data: [DONE]") <= script.stream.data.count(b"data: [DONE]")
    if got.values(b"x-joulegate-reason"):
        assert got.status == 502 and got.values(b"x-joulegate-reason")[0].decode() in LOST
        assert not certain, "a good answer was refused"
        return
    events = got.values(b"content-type")[:1] == [b"text/event-stream; charset=utf-8"]
    body, error = split_error(got.body) if events and got.values(b"transfer-encoding") else (got.body, None)
    if error is not None:
        assert error in LOST and not certain
    else:
        assert first is not None, "a false end"
        assert got.status == first.status
    if first is not None:
        dropped = DROPPED | first.tokens(b"connection") | {b"content-length"}
        assert all(header in got.headers for header in first.headers if header[0] not in dropped), got.headers
    if not events or asked != "stream":
        assert first is None or error or got.body == first.body
    elif script.stream is not None and (first is None or first.body == script.stream.data):
        ways = {script.stream.data, *[script.stream.without_usage(known) for known in FINGERPRINTS]}
        # Up to an error, bytes that came behind the last event may be among them.
        assert any(way == body if error is None else way.startswith(body) or body.startswith(way) for way in ways), body


def split_error(body: bytes) -> tuple[bytes, str | None]:
    """A stream's body, and the code of the error that ends it."""
    at = body.rfind(b'data: {"error":{')
    if at < 0 or not body.endswith(b"\n\n"):
        return body, None
    assert body[:at].endswith((b"\n\n", b"\n\r\n")) or at == 0, "an error within an event"
    return body[:at], str(json.loads(body[at + 6 :])["error"]["code"])


async def play(stage: Stage, script: Script, asked: str) -> None:
    """One call, one more on the same connection if it goes on, and one of somebody else's."""
    for engine in stage.gateway.app.gateway.engines.values():
        engine.fingerprint = None  # another process each time, as far as examples go
    client = await stage.connect()
    await client.send([ASKED[asked]])
    got = await client.answer(head_only=asked == "HEAD")
    check_answer(got, script, asked)
    if got is None or asked == "1.0" or b"close" in got.tokens(b"connection"):
        await client.closed.wait()
        assert got is None or len(client.received) == got.end, "bytes behind the last answer"
    else:
        await client.send([NEXT])
        following = await client.answer(got.end)
        assert following is not None and (following.status, following.body) == (200, b"next"), following
    client.transport.abort()
    await stage.check()


def test_any_answer_of_an_engine_is_relayed_whole_or_not_as_whole(capfd: pytest.CaptureFixture[str]) -> None:
    now: list[tuple[Script, str]] = []

    async def respond(request: EngineRequest) -> None:
        if request.target in ("/next", INNOCENT.decode()):
            await request.answer(b"next")
        else:
            await perform(request, *now[0])

    with Stage(respond, health={"failures_to_open": 1_000_000}) as stage:

        @settings(
            max_examples=800,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        )
        @given(scripts(), st.sampled_from(sorted(ASKED)))
        @example(Script(OK + b"content-length: 3\r\n\r\nabc", [], "stay", None), "HEAD")
        @example(Script(OK + b"content-length: 3\r\n\r\na", [], "close", None), "1.0")
        @example(Script(OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{", [], "close", None), "1.0")
        @example(Script(OK + b"connection: content-length\r\ncontent-length: 2\r\n\r\n{}", [], "stay", None), "GET")
        @example(Script(OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [], "stay", None), "GET")
        @example(Script(OK + CODED + b"transfer-encoding: chunked\r\n\r\n9\r\n\x1f\x8b", [], "close", None), "stream")
        @example(Script(OK + b"x: y\r\ncontent-length: 2\r\n\r\n{}" + SECOND, [], "stay", None), "GET")
        @example(Script(OK + LENGTH % len(STRANGE_USAGE) + STRANGE_USAGE, [], "stay", None), "GET")
        def fuzz(script: Script, asked: str) -> None:
            now[:] = [(script, asked)]
            stage.run(play(stage, script, asked))
            assert capfd.readouterr() == ("", "")

        fuzz()
