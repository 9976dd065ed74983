"""What a key may use, through HTTP: each refusal with its reason and when to come back; and what evasion costs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from tests.e2e.harness import Answer, EngineRequest, RunningGateway, engine, gateway, post, run, until

CHAT = {"model": "m", "messages": []}
KEY = "authorization: Bearer kk\r\n"
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'{"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'


def key(**limits: Any) -> list[dict[str, Any]]:
    """A configured key with these limits."""
    return [{"name": "k", "sha256": hashlib.sha256(b"kk").hexdigest(), **limits}]


def budget_used(joulegate: RunningGateway) -> int:
    """What the key has used."""
    return int(joulegate.app.state()["keys"]["k"]["budget_used_tokens"])


async def respond(request: EngineRequest) -> None:
    """A plain answer with usage."""
    await request.answer(USAGE)


def assert_refused(answer: Answer, reason: str, least: int, most: int) -> None:
    """429 with this reason, and a whole number of seconds to wait."""
    answer.assert_error(429, reason)
    assert answer.header("x-workflow-id")
    assert least <= int(answer.header("retry-after") or -1) <= most


@pytest.mark.parametrize(
    ("limits", "reason", "least", "most"),
    [
        ({"requests_per_minute": 1}, "key_request_rate", 1, 60),
        ({"tokens_per_minute": 12}, "key_token_rate", 1, 60),
        ({"token_budget": 16, "token_budget_seconds": 500.0}, "key_token_budget", 61, 500),
    ],
)
def test_a_key_that_has_used_up_what_it_may_is_told_when_to_come_back(
    limits: dict[str, Any], reason: str, least: int, most: int
) -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, keys=key(**limits)) as joulegate:
            assert (await joulegate.post("/v1/chat/completions", CHAT, KEY)).status == 200
            await until(joulegate.idle, "the first call is settled")
            for body in (CHAT, {**CHAT, "stream": True}):
                assert_refused(await joulegate.post("/v1/chat/completions", body, KEY), reason, least, most)
            assert len(vllm.requests) == 1

    run(main)


def test_a_key_may_have_so_many_calls_at_once() -> None:
    async def main() -> None:
        async def slow(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(USAGE)

        proceed = asyncio.Event()
        async with engine(slow) as vllm, gateway(vllm, keys=key(max_concurrency=1)) as joulegate:
            first = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT, KEY))
            await until(lambda: len(vllm.requests) == 1, "the first is at the engine")
            assert_refused(await joulegate.post("/v1/chat/completions", CHAT, KEY), "key_concurrency", 1, 1)
            proceed.set()
            assert (await first).status == 200
            assert (await joulegate.post("/v1/chat/completions", CHAT, KEY)).status == 200

    run(main)


@pytest.mark.parametrize("leaves", [True, False])
def test_whoever_takes_tokens_and_no_end_is_charged_for_them(leaves: bool) -> None:
    """A client that leaves before the usage, and an engine that dies before it. Written in one piece, all events come
    in few reads, as they do for a client that reads slowly."""

    async def main() -> None:
        async def stream(request: EngineRequest) -> None:
            await request.begin_stream()
            for _ in range(30):
                await request.chunk(TOKEN * 10)
            await proceed.wait()
            request.reset()

        proceed = asyncio.Event()
        async with engine(stream) as vllm, gateway(vllm, keys=key(token_budget=500)) as joulegate:
            body = {**CHAT, "stream": True}
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", body, KEY))
            await client.head()
            got = 0
            while got < 300:
                got += (await client.chunk()).count(b"data:")
            if leaves:
                client.abort()
            else:
                proceed.set()
                assert b"engine_reset" in await client.chunk()
            await until(joulegate.idle, "the call has ended")
            prompt_estimate = len(json.dumps(body)) // 4
            assert budget_used(joulegate) == 300 + prompt_estimate
            if leaves:
                proceed.set()
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**body, "max_tokens": 300}, KEY))
            assert_refused(await client.answer(), "key_token_budget", 1, 86_400)

    run(main)


def test_a_stream_without_usage_is_charged_what_it_was() -> None:
    """An engine that reports none, on a route of its own."""

    async def main() -> None:
        async def stream(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKEN * 20)
            await request.end_stream()

        async with engine(stream) as vllm, gateway(vllm, keys=key(token_budget=500)) as joulegate:
            assert (await joulegate.post("/invocations", {"stream": True}, KEY)).status == 200
            await until(joulegate.idle, "the call has ended")
            assert budget_used(joulegate) == 20 + len(b'{"stream": true}') // 4

    run(main)


@pytest.mark.parametrize("stream", ["true", 1])
def test_a_stream_is_counted_however_the_client_says_it_wants_one(stream: object) -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            assert request.json["stream_options"] == {"include_usage": True}
            await request.begin_stream()
            await request.chunk(TOKEN)
            await request.chunk(b'data: {"choices":[],' + USAGE[1:] + b"\n\n")
            await request.chunk(b"data: [DONE]\n\n")
            await request.end_stream()

        async with engine(answer) as vllm, gateway(vllm, keys=key(token_budget=500)) as joulegate:
            said = await joulegate.post("/v1/chat/completions", {**CHAT, "stream": stream}, KEY)
            assert said.body == TOKEN + b"data: [DONE]\n\n", "the client did not ask for usage"
            await until(joulegate.idle, "the call has ended")
            assert budget_used(joulegate) == 10

    run(main)


def test_paths_that_are_passed_through_are_in_the_accounts_too() -> None:
    """vllm router #179: uncounted paths made one engine of eight get everything."""

    async def main() -> None:
        async def slow(request: EngineRequest) -> None:
            await proceed.wait()
            await request.answer(USAGE)

        proceed = asyncio.Event()
        async with (
            engine(slow) as first,
            engine(slow) as second,
            gateway(first, second, keys=key(max_concurrency=4), policy={"name": "fifo"}) as joulegate,
        ):
            calls = []
            for number in range(4):
                data = (
                    post("/pooling", {"input": "x"}, KEY)
                    if number % 2
                    else f"GET /version HTTP/1.1\r\nhost: a\r\n{KEY}\r\n".encode()
                )
                calls.append(asyncio.ensure_future(joulegate.request(data)))
                await until(lambda: len(first.requests) + len(second.requests) == len(calls), "it is at an engine")
            state = joulegate.app.state()
            assert [engine["in_flight"] for engine in state["engines"].values()] == [2, 2]
            assert state["keys"]["k"]["running"] == state["calls_running"] == 4
            assert_refused(await joulegate.post("/pooling", {}, KEY), "key_concurrency", 1, 1)
            proceed.set()
            assert [(await call).status for call in calls] == [200] * 4
            await until(joulegate.idle, "all have ended")
            assert [engine["in_flight"] for engine in joulegate.app.state()["engines"].values()] == [0, 0]
            assert sum(engine["ledger"]["calls"] for engine in joulegate.app.state()["engines"].values()) == 4
            assert 'route="other"' in joulegate.app.metrics_text()

    run(main)


def test_a_browser_may_ask_whether_it_may_ask() -> None:
    async def main() -> None:
        async def allow(request: EngineRequest) -> None:
            assert (request.method, request.body) == ("OPTIONS", b"")
            await request.answer(b"OK", headers="access-control-allow-origin: http://app\r\n", kind="text/plain")

        async with engine(allow) as vllm, gateway(vllm, keys=key(max_concurrency=1)) as joulegate:
            ask = (
                "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: a\r\norigin: http://app\r\n"
                "access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n"
            )
            said = await joulegate.request(f"{ask}\r\n".encode())
            assert (said.status, said.header("access-control-allow-origin")) == (200, "http://app")
            assert (await joulegate.request(f"{ask}content-length: 0\r\n\r\n".encode())).status == 200
            (await joulegate.request(f"{ask}content-length: 2\r\n\r\n{{}}".encode())).assert_error(401)
            assert [request.header("origin") for request in vllm.requests] == ["http://app"] * 2
            await until(joulegate.idle, "all have ended")
            assert 'joulegate_calls_total{engine="127.0.0.1:' in (text := joulegate.app.metrics_text())
            assert 'route="OPTIONS"' in text

    run(main)
