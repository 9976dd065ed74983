"""Streams: passed on event by event, counted whether or not they asked for it, and what vLLM itself would have sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.harness import EngineRequest, engine, gateway, post, run

CHAT = {"model": "m", "messages": []}


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


TOKENS = [event({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in ('say "usage":', "Grüße", "世界")]
USAGE = event(
    {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}},
    }
)
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_is_counted_whether_or_not_it_asked(cut: int, asked: bool) -> None:
    whole = b"".join([*TOKENS, USAGE, DONE])
    pieces = [whole[i : i + cut] for i in range(0, len(whole), cut)] if cut else [*TOKENS, USAGE + DONE]

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            assert request.json["stream_options"] == {"include_usage": True}
            await request.begin_stream()
            for piece in pieces:
                await request.chunk(piece)
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
            said = await joulegate.post("/v1/chat/completions", {**CHAT, "stream": True, **options})
            assert said.complete
            assert said.body == (whole if asked else whole.replace(USAGE, b""))
            (account,) = [details["ledger"] for details in joulegate.app.state()["engines"].values()]
            assert (account["prompt_tokens"], account["cached_tokens"], account["output_tokens"]) == (7, 5, 3)

    run(main)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (b"", b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream_options":null', b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream_options":{"include_usage":false}', b'{"include_usage":true}'),
        (b',"stream_options":{"continuous_usage_stats":true}', b'"continuous_usage_stats":false'),
    ],
)
def test_usage_is_asked_for_in_the_clients_own_words(options: bytes, sent: bytes) -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            assert request.json["stream_options"]["include_usage"] is True
            assert sent in request.body
            await request.begin_stream()
            await request.chunk(USAGE + DONE)
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post("/v1/completions", b'{"model":"m","stream":true' + options + b"}")
            assert said.body == DONE

    run(main)


FINGERPRINT = b'"system_fingerprint":"vllm-0.32.0-9a775d62"'


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("choices", [1, 2])
def test_a_stream_that_did_not_ask_for_usage_is_what_vllm_would_have_sent(choices: int, together: bool) -> None:
    """vLLM moves its fingerprint from the events that end a choice into the usage event when there is one."""
    ends = [
        b'data: {"choices":[{"index":%d,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n' % index
        for index in range(choices)
    ]
    asked = [TOKENS[0], ends[0], TOKENS[1], *ends[1:], USAGE.replace(b"}\n\n", b"," + FINGERPRINT + b"}\n\n"), DONE]
    put_in = [end.replace(b"}]}", b"}]," + FINGERPRINT + b"}") for end in ends]
    expected = b"".join([TOKENS[0], put_in[0], TOKENS[1], *put_in[1:], DONE])

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            for piece in [b"".join(asked)] if together else asked:
                await request.chunk(piece)
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            for _ in range(3):  # the first learns the fingerprint, the others know it
                assert (await joulegate.post("/v1/chat/completions", {**CHAT, "stream": True})).body == expected

    run(main)


def test_the_time_to_first_token_is_that_of_the_first_event_and_not_of_the_head() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await proceed.wait()
            await request.chunk(TOKENS[0] + DONE)
            await request.end_stream()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            (exchange,) = joulegate.app.gateway.exchanges.values()
            assert exchange.call.first_byte_at is None
            proceed.set()
            assert await client.chunk() == TOKENS[0] + DONE
            assert exchange.call.first_byte_at is not None
            assert await client.chunk() == b""

    run(main)


def test_events_reach_the_client_as_they_come() -> None:
    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKENS[0])
            await proceed.wait()
            await request.chunk(DONE)
            await request.end_stream()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKENS[0]
            proceed.set()
            assert await client.chunk() == DONE
            assert await client.chunk() == b""

    run(main)


def test_a_character_that_two_reads_share_reaches_the_client_whole() -> None:
    whole = event({"choices": [{"index": 0, "delta": {"content": "世"}}]})
    at = whole.index("世".encode()) + 1

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKENS[0] + whole[:at])
            await proceed.wait()
            await request.chunk(whole[at:] + DONE)
            await request.end_stream()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKENS[0]
            proceed.set()
            assert (await client.chunk()).decode() == (whole + DONE).decode()
            assert await client.chunk() == b""

    run(main)


def test_an_event_that_waits_for_the_fingerprint_is_not_lost_with_its_engine() -> None:
    finish = event({"choices": [{"index": 0, "delta": {"content": "end"}, "finish_reason": "stop"}]})

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKENS[0] + finish + b'data: {"choices":[{"ind')
            await proceed.wait()
            request.reset()

        proceed = asyncio.Event()
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKENS[0]
            proceed.set()
            last = await client.chunk()
            assert last.startswith(finish)
            error = json.loads(last.removeprefix(finish).removeprefix(b"data: "))["error"]
            assert error["code"] == "engine_reset"
            assert await client.chunk() == b""

    run(main)


def test_line_ends_behind_an_event_are_kept() -> None:
    finish = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKENS[0] + finish + USAGE + DONE + b"\n")
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post("/v1/chat/completions", {**CHAT, "stream": True})
            assert said.body == TOKENS[0] + finish + DONE + b"\n"

    run(main)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_streams_of_other_apis_pass_unchanged_and_are_counted(path: str) -> None:
    events = (
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9,"output_tokens":0}}}\n\n'
        b'event: x\ndata: {"delta":"hi"}\n\n'
        b'event: message_delta\ndata: {"usage":{"input_tokens":9,"output_tokens":6}}\n\n'
    )

    async def main() -> None:
        async def respond(request: EngineRequest) -> None:
            assert "stream_options" not in request.json
            await request.begin_stream()
            await request.chunk(events[:100])
            await request.chunk(events[100:])
            await request.end_stream()

        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            said = await joulegate.post(path, {**CHAT, "stream": True})
            assert said.body == events
            (account,) = [details["ledger"] for details in joulegate.app.state()["engines"].values()]
            assert (account["prompt_tokens"], account["output_tokens"]) == (9, 6)

    run(main)
