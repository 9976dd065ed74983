"""SIGHUP: what a reload takes over, what it refuses, and what it must not disturb."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.breaker import BreakerRule
from scheduler.eventlog import replay
from tests.e2e.harness import (
    EngineRequest,
    RunningGateway,
    ScriptedEngine,
    configuration,
    engine,
    gateway,
    post,
    run,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

CHAT = {"model": "m", "messages": []}
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def key(name: str) -> dict[str, str]:
    """A configured key whose secret is its name."""
    return {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}


def reload(joulegate: RunningGateway, *engines: ScriptedEngine | str, **tables: Any) -> None:
    """As SIGHUP does when the file says this."""
    joulegate.app._reload = lambda: configuration(*engines, **tables)
    joulegate.app.reload()


async def ask(joulegate: RunningGateway, secret: str = "", headers: str = "") -> int:
    """The status of a call with this key."""
    given = f"authorization: Bearer {secret}\r\n" if secret else ""
    return (await joulegate.post("/v1/chat/completions", CHAT, given + headers)).status


async def respond(request: EngineRequest) -> None:
    """The simplest engine."""
    await request.answer(b"{}")


def test_a_removed_key_is_no_key_even_on_an_open_connection() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, keys=[key("a"), key("b")]) as joulegate:
            client = await joulegate.connect()
            with_a = post("/v1/chat/completions", CHAT, "authorization: Bearer a\r\n")
            await client.send(with_a)
            assert (await client.answer()).status == 200
            reload(joulegate, vllm, keys=[key("b")])
            await client.send(with_a)
            (await client.answer()).assert_error(401, "invalid_api_key")
            assert await ask(joulegate, "b") == 200

    run(main)


def test_without_any_key_a_gateway_on_loopback_is_open() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm, keys=[key("a")]) as joulegate:
            assert await ask(joulegate) == 401
            reload(joulegate, vllm)
            assert await ask(joulegate) == 200
            assert vllm.requests[-1].header("authorization") is None
            assert await ask(joulegate, "mine") == 200
            assert vllm.requests[-1].header("authorization") == "Bearer mine", "it is no key of ours any more"

    run(main)


def test_a_public_gateway_keeps_its_keys(tmp_path: Path) -> None:
    """The file may say loopback: where the process really listens is what counts."""

    async def main() -> None:
        log = tmp_path / "log"
        listen = {"host": "0.0.0.0"}
        async with engine(respond) as vllm, gateway(vllm, keys=[key("a")], listen=listen, log=str(log)) as joulegate:
            reload(joulegate, vllm, log=str(log))
            assert await ask(joulegate) == 401
            assert await ask(joulegate, "a") == 200
            await until(lambda: '"reload_failed"' in log.read_text(), "the refusal is in the log")
            (line,) = [json.loads(line) for line in log.read_text().splitlines() if "reload_failed" in line]
            assert "listen.host: '0.0.0.0' is not loopback, and there are no [[keys]]" in line["detail"]
            reload(joulegate, vllm, keys=[key("b")], log=str(log))
            assert (await ask(joulegate, "a"), await ask(joulegate, "b")) == (401, 200)
            reload(joulegate, vllm, log=str(log))
            assert await ask(joulegate) == 401, "however often it is reloaded"

    run(main)


def test_what_needs_a_restart_stays_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "log"
        async with engine(respond) as vllm, gateway(vllm, log=str(log)) as joulegate:
            parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
            for _ in range(2):
                reload(joulegate, vllm, log="/dev/null", tracing={"otlp_endpoint": "http://127.0.0.1:4318"})
                assert await ask(joulegate, headers=parent) == 200
                assert vllm.requests[-1].header("traceparent"), "no span of ours takes its place"
            await until(lambda: log.read_text().count('"reloaded"') == 2, "both are in the log")
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            said = [line["needs_restart"] for line in lines if line["event"] == "reloaded"]
            assert said == [["log.path", "tracing.otlp_endpoint"]] * 2, "it is said until it is done"

    run(main)


def test_timeouts_hold_for_calls_that_run_already() -> None:
    async def main() -> None:
        async def stream(request: EngineRequest) -> None:
            await request.begin_stream()
            await request.chunk(TOKEN)
            await request.gone.wait()

        async with engine(stream) as vllm, gateway(vllm) as joulegate:
            client = await joulegate.connect()
            await client.send(post("/v1/chat/completions", {**CHAT, "stream": True}))
            await client.head()
            assert await client.chunk() == TOKEN
            models = joulegate.app.gateway.engines[f"127.0.0.1:{vllm.port}"].models
            reload(joulegate, vllm, timeouts={"idle_seconds": 0.01, "connect_seconds": 7})
            assert b"idle_timeout" in await client.chunk()
            state = joulegate.app.gateway.engines[f"127.0.0.1:{vllm.port}"]
            assert (state.models, state.pool.connect_seconds) == (models, 7)

    run(main)


@pytest.mark.parametrize(
    "tables",
    [
        {"timeouts": {"connect_seconds": 5}},
        {"health": {"open_seconds": 9}},
        {"engines": [{"max_in_flight": 5}, {"max_in_flight": 6}]},
    ],
    ids=["timeouts", "health", "engines"],
)
def test_the_list_of_models_is_whole_at_each_moment(tables: dict[str, Any]) -> None:
    async def main() -> None:
        async with engine(respond, ("m1",)) as one, engine(respond, ("m2",)) as two, gateway(one, two) as joulegate:
            if "engines" in tables:
                for item, vllm in zip(tables["engines"], (one, two), strict=True):
                    item["url"] = vllm.url
            client = await joulegate.connect()
            reload(joulegate, one, two, **tables)
            assert joulegate.app.ready() == (True, []), "nor is it unready until the next probe"
            await client.send(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n")
            assert [entry["id"] for entry in (await client.answer()).json["data"]] == ["m1", "m2"]

    run(main)


def test_health_is_taken_over_and_replays(tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "events.jsonl"
        async with engine(respond) as vllm, gateway(vllm, event_log={"path": str(log)}) as joulegate:
            name = f"127.0.0.1:{vllm.port}"
            health = {"probe_seconds": 0.05, "failures_to_open": 50, "open_seconds": 25.0}
            reload(joulegate, vllm, health=health)
            assert joulegate.app.gateway.scheduler.engines[name].breaker.rule == BreakerRule(50, 25.0)
            probes = vllm.probes
            await until(lambda: vllm.probes > probes + 1, "it is probed on")
            reload(joulegate, vllm, health={**health, "failures_to_open": 2})
            vllm.healthy = False
            await until(lambda: not joulegate.app.ready()[0], "it is seen")
            breaker = joulegate.app.gateway.scheduler.engines[name].breaker
            await until(lambda: breaker.state == "open", "two faults are enough")
            vllm.healthy = True
            reload(joulegate, vllm, health={**health, "open_seconds": 0.05})
            await until(lambda: breaker.state == "closed", "a shorter time holds at once")
        with log.open() as lines:
            replayed = list(replay(lines))
        assert len(replayed) > 5 and all(same for *_, same in replayed)

    run(main)


def test_a_retry_during_a_reload_goes_to_an_engine_of_the_new_file() -> None:
    async def main() -> None:
        async def reset(request: EngineRequest) -> None:
            await proceed.wait()
            request.reset()

        proceed = asyncio.Event()
        async with engine(reset) as old, engine(respond) as new, gateway(old) as joulegate:
            call = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT))
            await until(lambda: len(old.requests) == 1, "the call is at the old engine")
            reload(joulegate, new)
            proceed.set()
            answer = await call
            assert answer.status == 200
            assert f"engine=127.0.0.1:{new.port}" in (answer.header("x-joulegate-decision") or "")
            assert list(joulegate.app.gateway.scheduler.engines) == [f"127.0.0.1:{new.port}"]

    run(main)


def test_a_retry_goes_back_to_the_same_engine_under_its_new_settings() -> None:
    async def main() -> None:
        async def once(request: EngineRequest) -> None:
            if len(vllm.requests) == 1:
                await proceed.wait()
                request.reset()
            else:
                await request.answer(b"{}")

        proceed = asyncio.Event()
        async with engine(once) as vllm, gateway(vllm) as joulegate:
            call = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT))
            await until(lambda: len(vllm.requests) == 1, "the call is at the engine")
            reload(joulegate, vllm, engines=[{"url": vllm.url, "api_key": "theirs"}])
            proceed.set()
            assert (await call).status == 200
            assert vllm.requests[-1].header("authorization") == "Bearer theirs"

    run(main)
