"""What no engine should see: each malformed request gets its error, once, in one log line, and harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Answer, EngineRequest, RunningGateway, ScriptedEngine, engine, gateway, post, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"

# name, the raw request, status, reason
MALFORMED = [
    ("CL then TE", HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
    ("TE then CL", HEAD + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
    ("two CL", HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, "malformed_http"),
    ("two equal CL", HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400, "malformed_http"),
    ("CL list", HEAD + b"content-length: 3, 3\r\n\r\nabc", 400, "malformed_http"),
    ("CL sign", HEAD + b"content-length: +3\r\n\r\nabc", 400, "malformed_http"),
    ("CL empty", HEAD + b"content-length: \r\n\r\n", 400, "malformed_http"),
    ("CL overflow", HEAD + b"content-length: 99999999999999999999999\r\n\r\n", 400, "malformed_http"),
    ("chunk size word", CHUNKED + b"zz\r\nabc\r\n", 400, "malformed_http"),
    ("chunk size 0x", CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, "malformed_http"),
    ("chunk size sign", CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n", 400, "malformed_http"),
    ("chunk size overflow", CHUNKED + b"fffffffffffffffff\r\nabc\r\n", 400, "malformed_http"),
    ("chunk without CRLF", CHUNKED + b"3\r\nabcX0\r\n\r\n", 400, "malformed_http"),
    ("chunk bare LF", CHUNKED + b"3\nabc\n0\n\n", 400, "malformed_http"),
    ("TE gzip, chunked", HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "transfer_encoding"),
    ("TE twice", HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", 400, "malformed_http"),
    ("TE chunked, identity", HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
    ("TE vertical tab", HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "malformed_http"),
    ("TE unknown", HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "transfer_encoding"),
    ("TE in HTTP/1.0", b"POST /x HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "transfer_encoding"),
    ("bare LF", b"GET / HTTP/1.1\nhost: x\n\n", 400, "malformed_http"),
    ("one bare LF", b"GET / HTTP/1.1\r\nhost: x\nx: y\r\n\r\n", 400, "malformed_http"),
    ("bare CR", b"GET / HTTP/1.1\r\nhost: x\rx: y\r\n\r\n", 400, "malformed_http"),
    ("obs-fold", GET + b"x: y\r\n z\r\n\r\n", 400, "malformed_http"),
    ("space before colon", b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400, "malformed_http"),
    ("NUL in a header", GET + b"x: a\x00b\r\n\r\n", 400, "malformed_http"),
    ("header name not ASCII", GET + b"x\xc3\xa9: a\r\n\r\n", 400, "malformed_http"),
    ("URL not ASCII", b"GET /\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n", 400, "malformed_http"),
    ("space in the URL", b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", 400, "malformed_http"),
    ("unknown method", b"FOO / HTTP/1.1\r\nhost: x\r\n\r\n", 400, "malformed_http"),
    ("HTTP/0.9", b"GET /\r\n\r\n", 505, "http_version"),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nhost: x\r\n\r\n", 400, "malformed_http"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_http"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_http"),
    ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method"),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
    ("two Hosts", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "duplicate_header"),
    ("target without a path", b"GET ftp://x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400, "target"),
    ("target with half an address", b"GET http://[/ HTTP/1.1\r\nhost: x\r\n\r\n", 400, "target"),
    ("other expectations", HEAD + b"expect: x\r\ncontent-length: 3\r\n\r\nabc", 417, "expectation"),
    ("1,000 headers", GET + b"".join(b"x-%d: y\r\n" % i for i in range(1000)) + b"\r\n", 431, "too_many_headers"),
    ("a 1 MiB header", GET + b"x: " + bytes([97]) * (1 << 20) + b"\r\n\r\n", 431, "headers_too_large"),
    ("an endless trailer", CHUNKED + b"2\r\n{}\r\n0\r\nx: " + b"a" * 1_000_000, 431, "headers_too_large"),
    ("many trailers", CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 431, "headers_too_large"),
    ("an endless chunk extension", CHUNKED + b"2;" + b"a" * 1_000_000, 431, "headers_too_large"),
    ("an endless chunk size", CHUNKED + b"0" * 1_000_000, 431, "headers_too_large"),
    ("a long URL", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "url_too_long"),
    ("33 MiB announced", HEAD + b"content-length: 34603008\r\n\r\n", 413, "body_too_large"),
    ("33 MiB in chunks", CHUNKED + b"2100000\r\n" + bytes(33 << 20), 413, "body_too_large"),
    ("compressed body", HEAD + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", 415, "content_encoding"),
]
DEEP = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
# name, the body, reason, the parameter that the error names
BODIES = [
    ("empty", b"", "empty_body", None),
    ("broken JSON", b'{"model": "m", "messages": [', "invalid_json", None),
    ("NaN", b'{"model": "m", "temperature": NaN}', "invalid_json", None),
    ("Infinity", b'{"model": "m", "temperature": -Infinity}', "invalid_json", None),
    ("not UTF-8", b'{"model": "m\xff"}', "invalid_json", None),
    ("half a surrogate", b'{"model": "\\ud800"}', "invalid_json", None),
    ("100,000 brackets deep", DEEP, "invalid_json", None),
    ("an array", b"[1]", "invalid_body", None),
    ("a string", b'"x"', "invalid_body", None),
    ("null", b"null", "invalid_body", None),
    ("model is a number", b'{"model": 5}', "invalid_model", "model"),
    ("model is an object", b'{"model": {}}', "invalid_model", "model"),
    ("workflow is a string", b'{"model": "m", "workflow": "x"}', "invalid_workflow", "workflow"),
    ("workflow has no id", b'{"model": "m", "workflow": {"node": "a"}}', "invalid_workflow", "workflow.id"),
    ("workflow deadline", b'{"model": "m", "workflow": {"id": "a", "deadline_ms": -1}}', "invalid_workflow", None),
]


@contextlib.asynccontextmanager
async def witnessed(tmp_path: Path, **tables: Any) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, Path]]:
    """A gateway with a call of somebody else's under way, which must end well whatever happens beside it."""
    proceed = asyncio.Event()

    async def respond(request: EngineRequest) -> None:
        if b"witness" in request.body:
            await proceed.wait()
        await request.answer(b'{"fine":true}')

    log = tmp_path / "calls.jsonl"
    async with engine(respond) as vllm, gateway(vllm, log=str(log), **tables) as joulegate:
        headers = "authorization: Bearer secret\r\n"
        witness = asyncio.ensure_future(joulegate.post("/v1/completions", {"model": "m", "user": "witness"}, headers))
        await until(lambda: len(vllm.requests) == 1, "the witness's call is under way")
        vllm.requests.clear()
        yield joulegate, vllm, log
        proceed.set()
        assert (await witness).json == {"fine": True}
        assert (await joulegate.post("/v1/completions", {"model": "m"}, headers)).status == 200


async def one_line(joulegate: RunningGateway, log: Path, status: int, reason: str) -> None:
    """The log holds one line of a call, with this end."""
    joulegate.app.gateway.settle()
    joulegate.app.log.flush()
    await until(lambda: '"event":"call"' in log.read_text(), "a line for the call")
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # noqa: ASYNC240  # it is a small file
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["status"], line["reason"]) for line in calls] == [(status, reason)]


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"), [row[1:] for row in MALFORMED], ids=[r[0] for r in MALFORMED]
)
def test_malformed_http_is_refused_and_closed(
    request_bytes: bytes, status: int, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, log):
            client = await joulegate.connect()
            with contextlib.suppress(ConnectionError):
                await client.send(request_bytes)
            (await client.answer()).assert_error(status, reason)
            if reason != "content_encoding":
                await client.closed()
            assert vllm.requests == []
            await one_line(joulegate, log, status, reason)

    run(main)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("body", "reason", "param"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_bad_bodies_are_refused_and_the_connection_goes_on(
    body: bytes, reason: str, param: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, log):
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", body))
            error = (await client.answer()).assert_error(400, reason)
            if param is not None:
                assert error["param"] == param
            assert vllm.requests == []
            await one_line(joulegate, log, 400, reason)
            await client.send(post("/v1/chat/completions", {"model": "m"}))
            assert (await client.answer()).status == 200

    run(main)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "begun", [b"GET /v1/models HTT", HEAD, HEAD + b"content-length: 10\r\n\r\nabc", CHUNKED + b"3\r\n"]
)
def test_a_request_that_does_not_arrive_is_a_408(begun: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with witnessed(tmp_path, timeouts={"request_seconds": 0.3}) as (joulegate, vllm, log):
            client = await joulegate.connect()
            await client.send(begun)
            (await client.answer()).assert_error(408, "request_timeout")
            await client.closed()
            assert vllm.requests == []
            await one_line(joulegate, log, 408, "request_timeout")

    run(main)


def test_upgrades_are_ignored_and_nothing_behind_them_is_taken_for_another_protocol(tmp_path: Path) -> None:
    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, _):
            client = await joulegate.connect()
            upgrade = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
            await client.send(GET + upgrade + b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n")
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
            assert [request.target for request in vllm.requests] == ["/v1/models", "/second"]
            vllm.requests.clear()
            h2c = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
            await client.send(HEAD + h2c + b'content-length: 13\r\n\r\n{"model":"m"}')
            assert (await client.answer()).status == 200
            (got,) = vllm.requests
            assert got.body == b'{"model":"m"}'
            assert got.header("upgrade") is None
            assert got.header("http2-settings") is None

    run(main)


def test_a_valid_request_is_answered_before_the_invalid_one_behind_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, _):
            for garbage in (b"this is not HTTP\r\n\r\n", HEAD + b"content-length: x\r\n\r\n"):
                client = await joulegate.connect()
                await client.send(post("/v1/completions", {"model": "m"}) + garbage)
                assert (await client.answer()).json == {"fine": True}
                (await client.answer()).assert_error(400, "malformed_http")
                await client.closed()
            assert len(vllm.requests) == 2

    run(main)


@pytest.mark.parametrize("last", [b"POST /v1/completions HTTP/1.0\r\n\r\n", GET + b"connection: close\r\n\r\n"])
def test_bytes_behind_a_last_request_are_nobodys(last: bytes, tmp_path: Path) -> None:
    """A body without a length does not exist in a request, whatever its sender means."""

    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, _):
            client = await joulegate.connect()
            await client.send(last + b'{"model":"m"}GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n')
            said = await client.answer()
            assert said.status == (400 if b"1.0" in last else 200)
            assert await client.closed() == b""
            assert "/smuggled" not in [request.target for request in vllm.requests]

    run(main)


def test_what_can_be_refused_is_refused_before_the_body_is_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
        keys = [{"name": "k", "sha256": digest}]
        async with witnessed(tmp_path, keys=keys, limits={"body_bytes": 1000}) as (joulegate, vllm, _):
            expect = HEAD + b"expect: 100-continue\r\n"
            for header, length, status, reason in (
                (b"", 10, 401, "invalid_api_key"),
                (b"authorization: Bearer wrong\r\n", 10, 401, "invalid_api_key"),
                (b"authorization: Basic secret\r\n", 10, 401, "invalid_api_key"),
                (b"authorization: Bearer secret\r\n", 1001, 413, "body_too_large"),
            ):
                client = await joulegate.connect()
                await client.send(expect + header + b"content-length: %d\r\n\r\n" % length)
                raw = await client.reader.readuntil(b"\r\n")
                assert int(raw.split()[1]) == status, "no 100 before it"
                rest = await client.closed()
                assert reason.encode() in rest
            for header in ("authorization: bearer secret\r\n", "x-api-key: secret\r\n", "api-key: secret\r\n"):
                assert (await joulegate.post("/v1/completions", {"model": "m"}, header)).status == 200
            for got in vllm.requests:
                assert not {"authorization", "x-api-key", "api-key"} & {name.lower() for name, _ in got.headers}

    run(main)


def test_clients_that_leave_in_the_middle_leave_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with witnessed(tmp_path) as (joulegate, vllm, _):
            for begun in (b"", b"GET", HEAD, HEAD + b"content-length: 100000\r\n\r\n" + bytes(50_000)):
                for abort in (False, True):
                    client = await joulegate.connect()
                    await client.send(begun)
                    client.abort() if abort else client.close()
            server = joulegate.app.gateway.server
            await until(lambda: len(server.connections) == 1, "only the witness is connected")
            assert vllm.requests == []

    run(main)


def test_buffers_and_connections_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        limits = {"buffered_bytes": 100_000, "client_connections": 6}
        async with witnessed(tmp_path, limits=limits) as (joulegate, vllm, _):
            holder = await joulegate.connect()
            await holder.send(HEAD + b"content-length: 90000\r\n\r\n" + bytes(80_000))
            server = joulegate.app.gateway.server
            await until(lambda: server.buffered_bytes >= 80_000, "most of the buffer is taken")
            said: Answer = await joulegate.post("/v1/completions", b"x" * 30_000)
            said.assert_error(503, "buffers_full")
            assert said.header("retry-after") == "1"
            holder.abort()
            await until(lambda: server.buffered_bytes < 1000, "the buffer is free again")
            others = [await joulegate.connect() for _ in range(5)]
            await until(lambda: len(server.connections) == 6, "as many as are allowed")
            assert await (await joulegate.connect()).closed() == b""
            assert server.refused_connections == 1
            for client in others:
                client.abort()
            await until(lambda: len(server.connections) == 1, "they are gone")
            assert vllm.requests == []

    run(main)


def test_a_body_of_too_many_values_is_refused_unread(tmp_path: Path) -> None:
    async def main() -> None:
        async with witnessed(tmp_path, limits={"json_values": 10_000}) as (joulegate, vllm, _):
            body = b'{"model":"m","x":[' + b"[]," * 100_000 + b"1]}"
            (await joulegate.post("/v1/completions", body)).assert_error(413, "body_too_complex")
            assert vllm.requests == []

    run(main)
