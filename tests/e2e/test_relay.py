"""The engine sees the client's bytes, the client sees the engine's; what is ours is added and taken out again."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.e2e.harness import EngineRequest, engine, gateway, post, run

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Grüße, 世界"}]}


def test_a_plain_call_passes_byte_for_byte() -> None:
    body = b'{ "model":"m",\n "messages": [ ], "temperature": 1.50, "big": 123456789012345678901234567890 }'
    usage = '"usage":{"prompt_tokens":3,"completion_tokens":4}'
    answer = f'{{"id":"x","choices":[],{usage},"text":"Grüße","tokens":["usage"]}}'.encode()

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(answer, headers="x-engine: yes\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.request(
                post(
                    "/v1/chat/completions?x=1",
                    body,
                    "x-custom: kept\r\nauthorization: Bearer sk\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\n"
                    "te: trailers\r\nkeep-alive: timeout=5\r\n",
                )
            )
            assert said.status == 200
            assert said.body == answer
            assert said.header("x-engine") == "yes"
            assert [value for name, value in said.headers if name == "set-cookie"] == ["a=1", "b=2"]
            (got,) = vllm.requests
            assert got.target == "/v1/chat/completions?x=1"
            assert got.body == body
            assert got.header("x-custom") == "kept"
            assert got.header("authorization") == "Bearer sk"
            assert got.header("host") == f"127.0.0.1:{vllm.port}"
            assert not {"connection", "x-hop", "te", "keep-alive"} & {name.lower() for name, _ in got.headers}
            state = joulegate.app.state()
            (account,) = [details["ledger"] for details in state["engines"].values()]
            assert (account["calls"], account["prompt_tokens"], account["output_tokens"]) == (1, 3, 4)

    run(main)


def test_the_request_id_is_kept_or_made_and_given_to_the_engine() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            echo = request.header("x-request-id") if b"echo" in request.body else None
            await request.answer(b"{}", headers=f"X-Request-Id: {echo}\r\n" if echo else "")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            given = await joulegate.post("/v1/chat/completions", CHAT, "X-Request-ID: mine-1\r\n")
            made = await joulegate.post("/v1/chat/completions", CHAT)
            echoed = await joulegate.post("/v1/chat/completions", {**CHAT, "user": "echo"}, "x-request-id: mine-2\r\n")
            assert [request.header("x-request-id") for request in vllm.requests] == [
                "mine-1",
                made.header("x-request-id"),
                "mine-2",
            ]
            assert given.header("x-request-id") == "mine-1"
            assert echoed.header("x-request-id") == "mine-2"

    run(main)


def test_our_fields_are_taken_out_and_answered() -> None:
    body = b'{"model":"m","workflow":{"id":"wf-1","node":"plan"},"messages":[]}'

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            by_body = await joulegate.post("/v1/chat/completions", body)
            by_header = await joulegate.post("/v1/chat/completions", CHAT, "x-workflow-id: wf-2\r\n")
            by_url = await joulegate.post("/w/wf-3/v1/chat/completions", CHAT)
            alone = await joulegate.post("/v1/chat/completions", CHAT)
            assert vllm.requests[0].body == b'{"model":"m","messages":[]}'
            assert vllm.requests[1].header("x-workflow-id") is None
            assert vllm.requests[2].target == "/v1/chat/completions"
            assert by_body.header("x-workflow-id") == "wf-1"
            assert by_body.header("x-workflow-node") == "plan"
            assert by_header.header("x-workflow-id") == "wf-2"
            assert by_url.header("x-workflow-id") == "wf-3"
            assert alone.header("x-workflow-id")
            decision = by_body.header("x-joulegate-decision")
            assert decision is not None
            assert decision.startswith(f"passthrough; engine=127.0.0.1:{vllm.port}; held_ms=")

    run(main)


def test_an_id_from_a_body_cannot_forge_a_header() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            body = {**CHAT, "prompt_cache_key": "a\r\nset-cookie: forged=1\r\n\r\nHTTP/1.1 200 OK"}
            said = await joulegate.post("/v1/chat/completions", body)
            assert said.status == 200
            assert said.header("set-cookie") is None

    run(main)


def test_every_shape_of_answer_is_framed_rightly() -> None:
    large = json.dumps({"data": "x" * 3_000_000, "usage": {"prompt_tokens": 2, "total_tokens": 2}}).encode()
    raw = {
        "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n"
        b"0\r\nx-trailer: 1\r\n\r\n",
        "/close": b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcdefg",
        "/old": b"HTTP/1.0 200 OK\r\n\r\nabcdefg",
        "/none": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/interim": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nabcdefg",
        "/empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    }

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.target == "/large":
                await request.answer(large)
                return
            await request.send(raw[request.target])
            if request.target in ("/close", "/old"):
                request.writer.close()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            for target in (*raw, "/large"):
                await client.send(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                said = await client.answer()
                expected = {"/none": b"", "/empty": b"", "/large": large}.get(target, b"abcdefg")
                assert (said.complete, said.body) == (True, expected), target
            for target in ("/chunked", "/close", "/interim"):
                old = await joulegate.request(f"GET {target} HTTP/1.0\r\n\r\n".encode())
                assert (old.header("transfer-encoding"), old.body) == (None, b"abcdefg")

    run(main)


def test_an_answer_that_cannot_be_passed_on_whole_does_not_look_whole() -> None:
    length = b"HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 2\r\n\r\n{}"
    coded = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    stray = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    events = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked"
        b"\r\n\r\n2\r\n\x1f\x8b\r\n"
    )
    usage = b'{"usage":{"input_tokens":1,"cache_read_input_tokens":2,"cache_creation_input_tokens":"x"}}'

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            answers = {"/length": length, "/coded": coded, "/stray": stray, "/events": events, "/old": events}
            if request.target == "/usage":
                await request.answer(usage)
                return
            await request.send(answers[request.target])
            if request.target in ("/events", "/old"):
                await seen.wait()
                request.reset()

        seen = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer()).body == b"{}"
            await client.send(b"GET /usage HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer()).body == usage
            await client.send(b"HEAD /stray HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer(no_body=True)).status == 200
            await client.send(b"GET /coded HTTP/1.1\r\nhost: x\r\n\r\n")
            (await client.answer()).assert_error(502, "engine_protocol")
            await client.send(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.head()).status == 200
            assert await client.chunk() == b"\x1f\x8b"
            old = await joulegate.connect()
            await old.send(b"GET /old HTTP/1.0\r\n\r\n")
            assert (await old.head()).status == 200
            assert await old.reader.readexactly(2) == b"\x1f\x8b"
            seen.set()
            assert await client.closed() == b"", "no event of ours within compressed ones"
            with pytest.raises(ConnectionResetError):  # to HTTP/1.0 any other end would be the body's
                await asyncio.wait_for(old.reader.read(), 10)

    run(main)


def test_head_requests_have_no_body() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.send(
                b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n" + (b"" if request.method == "HEAD" else b"abcdefg")
            )

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            for _ in range(2):
                await client.send(b"HEAD /x HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await client.answer(no_body=True)).header("content-length") == "7"
            await client.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer()).body == b"abcdefg"

    run(main)


def test_chunked_and_continued_requests_arrive_whole() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(b"{}")

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(
                b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
            )
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            for part in (b'{"mod', b'el":"m"}'):
                await client.send(b"%x\r\n%b\r\n" % (len(part), part))
            await client.send(b"0\r\n\r\n")
            assert (await client.answer()).status == 200
            (got,) = vllm.requests
            assert got.body == b'{"model":"m"}'
            assert got.header("content-length") == "13"
            assert got.header("transfer-encoding") is None
            assert got.header("expect") is None

    run(main)


def test_a_large_body_reaches_the_engine_byte_for_byte() -> None:
    texts = [f"{number}: Grüße, 世界 \U0001f600" * 8 for number in range(60_000)]
    body = json.dumps({"model": "m", "prompt": texts}, ensure_ascii=False).encode()
    assert len(body) > 8 << 20

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            assert request.body == body
            await request.answer(b'{"fine":true}')

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            chunked = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            pieces = [body[at : at + 300_001] for at in range(0, len(body), 300_001)]
            chunked += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            client = await joulegate.connect()
            for request in (post("/v1/completions", body), chunked):
                await client.send(request)
                assert (await client.answer()).json == {"fine": True}
            assert len(vllm.requests) == 2

    run(main)


def test_small_chunks_cost_a_request_no_limit() -> None:
    """Their framing is five times what they carry: only what brings nothing of the body is counted."""

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(request.body)

        async with engine(respond) as vllm, gateway(vllm, limits={"header_bytes": 1000}) as joulegate:
            body = json.dumps({"model": "m", "prompt": "x" * 50_000}).encode()
            client = await joulegate.connect()
            await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            await client.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nx-trailer: 1\r\n\r\n")
            assert (await client.answer()).body == body

    run(main)


def test_all_that_several_connection_headers_name_is_for_one_hop() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            named = "connection: x-c\r\nconnection: keep-alive, x-d\r\nx-c: 1\r\nx-d: 2\r\nx-e: 3\r\n"
            await request.answer(b"{}", headers=named)

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            for more in ("", "connection: upgrade\r\nupgrade: x\r\n"):
                headers = f"connection: x-a\r\nConnection: x-b\r\n{more}x-a: 1\r\nx-b: 2\r\nx-e: 3\r\n"
                said = await joulegate.post("/v1/chat/completions", CHAT, headers)
                assert said.status == 200
                assert {name for name, _ in said.headers} & {"x-c", "x-d", "x-e"} == {"x-e"}
                got = {name for name, _ in vllm.requests[-1].headers}
                assert got & {"x-a", "x-b", "x-e", "connection", "upgrade"} == {"x-e"}

    run(main)


def test_a_slow_reader_slows_the_engine_and_not_the_gateway() -> None:
    """Back-pressure: with a client that does not read, the engine cannot push more than the buffers hold."""
    sent = 0

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            nonlocal sent
            await request.begin_stream("application/octet-stream")
            while sent < 64 << 20:
                await request.chunk(bytes(65536))
                sent += 65536
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
            await client.head()
            before = -1
            while before != sent:  # until the engine is stuck
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 40 << 20
            (connection,) = joulegate.app.gateway.server.connections
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 2 << 20
            while await client.chunk():
                pass
            assert sent == 64 << 20

    run(main)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            if request.json["n"] == 0:
                await proceed.wait()
            await request.answer(request.body)

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm, limits={"pipelined_requests": 40}) as joulegate:
            client = await joulegate.connect()
            await client.send(b"".join(post("/v1/chat/completions", {"model": "m", "n": n}) for n in range(40)))
            proceed.set()
            assert [(await client.answer()).json["n"] for _ in range(40)] == list(range(40))

    run(main)


def test_models_of_several_engines_are_merged_whole() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.answer(request.target.encode(), kind="text/plain")

        async with (
            engine(respond, ("a", "b")) as one,
            engine(respond, ("b", "c")) as two,
            gateway(one, two) as joulegate,
        ):
            said = await joulegate.request(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert [entry["id"] for entry in said.json["data"]] == ["a", "b", "c"]
            assert {entry["max_model_len"] for entry in said.json["data"]} == {2048}
            for _ in range(3):
                assert (await joulegate.post("/v1/completions", {"model": "c"})).status == 200
            assert (len(one.requests), len(two.requests)) == (0, 3)
            error = (await joulegate.post("/v1/completions", {"model": "z"})).assert_error(404, "unknown_model")
            assert error["param"] == "model"

    run(main)
