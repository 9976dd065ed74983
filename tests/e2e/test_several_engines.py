"""Several engines: whose models are listed, who is asked for one of them, and who before anybody knows them."""

from __future__ import annotations

import asyncio
import hashlib
import json

from tests.e2e.harness import EngineRequest, ScriptedEngine, engine, gateway, run, until
from tests.e2e.test_failures import closed_port

KEY = {"name": "k", "sha256": hashlib.sha256(b"kk").hexdigest()}


def get(path: str, headers: str = "") -> bytes:
    """The bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode()


async def respond(request: EngineRequest) -> None:
    """Says where it was asked."""
    port = request.writer.get_extra_info("sockname")[1]
    await request.answer(json.dumps({"port": port, "path": request.target}).encode())


def test_one_model_is_asked_of_an_engine_that_has_it() -> None:
    async def main() -> None:
        async with engine(respond, ("org/m1",)) as one, engine(respond, ("m2",)) as two, gateway(one, two) as joulegate:
            for path in ("/v1/models/org/m1", "/v1/models/org%2Fm1"):
                for _ in range(3):
                    said = await joulegate.request(get(path))
                    assert said.json == {"port": one.port, "path": path}
            assert (await joulegate.request(get("/v1/models/m2"))).json["port"] == two.port
            (await joulegate.request(get("/v1/models/nope"))).assert_error(404, "unknown_model")

    run(main)


def test_the_list_of_all_models_is_an_answer_like_any_other() -> None:
    async def main() -> None:
        async with (
            engine(respond, ("m1", "both")) as one,
            engine(respond, ("m2", "both")) as two,
            gateway(one, two, policy={"name": "fifo"}) as joulegate,
        ):
            said = await joulegate.request(get("/v1/models", "x-workflow-id: run\r\nx-workflow-node: look\r\n"))
            assert [entry["id"] for entry in said.json["data"]] == ["m1", "both", "m2"]
            assert said.json["data"][0]["max_model_len"] == 2048
            assert said.header("x-workflow-id") == "run" and said.header("x-workflow-node") == "look"
            assert said.header("x-joulegate-decision") == "fifo; engine=-; held_ms=0.0"
            assert said.header("x-request-id")
            text = joulegate.app.metrics_text()
            assert 'outcome="ok",reason="-",route="/v1/models"} 1.0' in text
            assert not one.requests and not two.requests

    run(main)


def test_the_list_obeys_a_keys_limits() -> None:
    async def main() -> None:
        async with (
            engine(respond, ("m1",)) as one,
            engine(respond, ("m2",)) as two,
            gateway(one, two, keys=[{**KEY, "requests_per_minute": 1}]) as joulegate,
        ):
            ask = get("/v1/models", "authorization: Bearer kk\r\n")
            assert (await joulegate.request(ask)).status == 200
            refused = await joulegate.request(ask)
            refused.assert_error(429, "key_request_rate")
            assert 1 <= int(refused.header("retry-after") or 0) <= 60
            assert refused.header("x-workflow-id")
            (await joulegate.request(get("/v1/models"))).assert_error(401)

    run(main)


def test_without_any_engine_there_is_no_list() -> None:
    async def main() -> None:
        async with engine(respond, ("m1",)) as one, engine(respond, ("m2",)) as two, gateway(one, two) as joulegate:
            await one.kill()
            await two.kill()
            await until(lambda: not joulegate.app.ready()[0], "the probes have seen it")
            states = joulegate.app.gateway.scheduler.engines.values()
            await until(lambda: all(state.breaker.state == "open" for state in states), "both are given up")
            said = await joulegate.request(get("/v1/models"))
            said.assert_error(503, "no_engine")
            assert said.header("retry-after") == "1"

    run(main)


def test_an_engine_that_was_never_seen_is_asked_last() -> None:
    """field notes: unhealthy workers in the minimum (vllm router #254)."""

    async def main() -> None:
        dead = f"http://127.0.0.1:{closed_port()}"
        health = {"failures_to_open": 1_000_000}
        async with engine(respond) as vllm, gateway(vllm, dead, health=health) as joulegate:
            calls = [joulegate.post("/v1/chat/completions", {"model": "m"}) for _ in range(20)]
            assert {answer.json["port"] for answer in await asyncio.gather(*calls)} == {vllm.port}
            assert "joulegate_attempts_failed_total{" not in joulegate.app.metrics_text()

    run(main)


def test_a_trial_call_that_takes_long_holds_nobody() -> None:
    async def main() -> None:
        async def slow(request: EngineRequest) -> None:
            if request.json.get("user") == "slow":
                await proceed.wait()
            await request.answer(b"{}")

        proceed = asyncio.Event()
        async with engine(slow) as vllm, gateway(vllm) as joulegate:
            breaker = joulegate.app.gateway.scheduler.engines[f"127.0.0.1:{vllm.port}"].breaker
            await vllm.kill()
            await until(lambda: breaker.state == "open", "the probes have seen it")
            revived = ScriptedEngine(slow)
            revived.port = vllm.port
            await revived.start()
            await until(lambda: breaker.state == "half_open", "a probe was good")
            trial = asyncio.ensure_future(joulegate.post("/v1/chat/completions", {"model": "m", "user": "slow"}))
            others = [joulegate.post("/v1/chat/completions", {"model": "m"}) for _ in range(5)]
            assert [answer.status for answer in await asyncio.gather(*others)] == [200] * 5
            assert not trial.done()
            assert breaker.state == "closed"
            proceed.set()
            assert (await trial).status == 200
            await revived.kill()

    run(main)
