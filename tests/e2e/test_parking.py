"""Engines that are parked, over HTTP: put to sleep, woken for calls, and what goes wrong with that."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.app import App
from tests.e2e.harness import Answer, EngineRequest, RunningGateway, ScriptedEngine, configuration, gateway, run, until
from tests.e2e.twin_process import MODEL, Twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT = "/v1/chat/completions"
SOON = {"park": True, "park_idle_seconds": 0.2}
HEALTH = {"probe_seconds": 0.05, "open_seconds": 0.2}


class SleepyEngine(ScriptedEngine):
    """It has sleep mode, and does as the test says: `sleeps` and `wakes` are the statuses of what it answers."""

    def __init__(self, *, asleep: bool = False) -> None:
        super().__init__(self._serve_call)
        self.asleep = asleep
        self.able = True
        self.sleeps = self.wakes = "200 OK"
        self.may_wake = asyncio.Event()
        self.may_wake.set()
        self.asked: list[str] = []
        self.calls = 0
        self.calls_asleep = 0

    async def _serve_call(self, request: EngineRequest) -> None:
        self.calls += 1
        self.calls_asleep += self.asleep
        await request.answer(json.dumps({"port": self.port}).encode())

    async def _own(self, request: EngineRequest) -> bool:
        path = request.target.partition("?")[0]
        if path == "/metrics":
            text = b'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
            await request.answer(text, kind="text/plain")
            return True
        if path not in ("/sleep", "/wake_up", "/is_sleeping"):
            return await super()._own(request)
        if not self.able:
            await request.answer(b'{"detail":"Not Found"}', status="404 Not Found")
            return True
        if path == "/is_sleeping":
            await request.answer(json.dumps({"is_sleeping": self.asleep}).encode())
            return True
        self.asked.append(request.target)
        if path == "/wake_up":
            await self.may_wake.wait()
        status = self.sleeps if path == "/sleep" else self.wakes
        if status.startswith("200"):
            self.asleep = path == "/sleep"
        await request.answer(b"{}", status=status)
        return True


@contextlib.asynccontextmanager
async def sleepy(*, asleep: bool = False, port: int = 0) -> AsyncIterator[SleepyEngine]:
    """A running one."""
    engine = SleepyEngine(asleep=asleep)
    engine.port = port
    await engine.start()
    try:
        yield engine
    finally:
        await engine.kill()


def parked(*engines: ScriptedEngine | Twin, **more: Any) -> list[dict[str, Any]]:
    """The configuration of engines named a, b, c…, all of which may be parked."""
    return [{"url": engine.url, "name": name, **SOON, **more} for name, engine in zip("abc", engines, strict=False)]


def state(joulegate: RunningGateway, name: str) -> str:
    """Of an engine."""
    return joulegate.app.gateway.scheduler.parking.sleepers[name].state


async def control(joulegate: RunningGateway, path: str) -> tuple[int, Any]:
    """A page of the control plane."""
    reader, writer = await asyncio.open_connection("127.0.0.1", joulegate.control_port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), json.loads(body)


async def asks(joulegate: RunningGateway, **more: Any) -> Answer:
    """One call."""
    return await joulegate.post(CHAT, {"model": "m", "messages": [], **more})


def logged(path: Path, event: str) -> list[dict[str, Any]]:
    """The log's lines of this event."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("event") == event]


def test_an_idle_engine_is_parked_and_woken_for_a_call_that_finds_the_other_one_full(tmp_path: Path) -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            proceed = asyncio.Event()

            async def slow(request: EngineRequest) -> None:
                if request.json.get("user") == "slow":
                    await proceed.wait()
                await request.answer(json.dumps({"port": a.port}).encode())

            a.answer = slow
            engines = parked(a, b, max_in_flight=1)
            async with gateway(engines=engines, health=HEALTH, log=str(tmp_path / "log")) as joulegate:
                await until(lambda: state(joulegate, "b") == "asleep", "b is parked")
                assert b.asleep and b.asked == ["/sleep?level=1&mode=wait"] and not a.asked
                _, told = await control(joulegate, "/admin/engines")
                assert told["engines"]["b"]["parking"]["state"] == "asleep"
                assert told["engines"]["b"]["healthy"] is True and told["engines"]["b"]["breaker"] == "closed"
                _, ready = await control(joulegate, "/ready")
                assert ready["ready"] and ready["notes"] == ["engine b is asleep"]
                text = joulegate.app.metrics_text()
                assert 'joulegate_engine_asleep{engine="b"} 1.0' in text
                assert 'joulegate_engine_asleep{engine="a"} 0.0' in text
                first = asyncio.ensure_future(asks(joulegate, user="slow"))
                await until(lambda: len(a.requests) == 1, "it runs at a")
                second = await asks(joulegate)
                assert second.json == {"port": b.port} and not b.asleep
                proceed.set()
                assert (await first).status == 200
                assert 'joulegate_engine_moves_total{action="wake",engine="b",outcome="ok"} 1.0' in (
                    joulegate.app.metrics_text()
                )
                call_id = (second.header("x-joulegate-decision") or "").rpartition("id=")[2]
                _, why = await control(joulegate, f"/admin/decisions/{call_id}")
                assert why["held"]["last"]["rule"] == "waking" and why["held"]["last"]["hold_seconds"] > 0
            assert b.calls == 1 and b.calls_asleep == 0
            assert [line["why"] for line in logged(tmp_path / "log", "engine_parked")][:1] == ["nothing to do"]

    run(main)


@pytest.mark.parametrize("policy", ["passthrough", "joule"])
def test_after_kill_9_engines_are_found_asleep_and_one_is_woken_for_calls(policy: str) -> None:
    async def main() -> None:
        async with sleepy(asleep=True) as a, sleepy(asleep=True) as b:
            a.may_wake.clear()
            async with gateway(engines=parked(a, b), health=HEALTH, policy={"name": policy}) as joulegate:
                waiting = asyncio.ensure_future(asks(joulegate))
                await until(lambda: a.asked == ["/wake_up"], "a is being woken")
                _, ready = await control(joulegate, "/ready")
                assert ready["ready"], "whoever comes waits for it"
                assert not waiting.done()
                a.may_wake.set()
                assert (await waiting).json == {"port": a.port}
                assert b.asked == [] and b.asleep, "one is enough"
            assert a.calls_asleep == 0

    run(main)


def test_an_engine_that_cannot_be_woken_is_said_and_calls_fail_with_its_reason() -> None:
    async def main() -> None:
        async with sleepy(asleep=True) as a, sleepy(asleep=True) as b:
            for engine in (a, b):
                engine.wakes = "500 Internal Server Error"
            parking = {"wake_tries": 2, "retry_seconds": 0.05, "rest_seconds": 3600}
            async with gateway(engines=parked(a, b), health=HEALTH, parking=parking) as joulegate:
                (await asks(joulegate)).assert_error(503, "wake_failed")
                said = (await asks(joulegate)).assert_error(503, "wake_failed")
                assert "500 for POST /wake_up" in said["message"] and "/admin/engines" in said["message"]
                assert a.asked == b.asked == ["/wake_up"] * 2
                _, ready = await control(joulegate, "/ready")
                assert not ready["ready"] and "could not be woken" in ready["reasons"][0]
                a.asleep = False  # somebody has seen to it
                await until(lambda: state(joulegate, "a") == "awake", "it is found awake")
                assert (await asks(joulegate)).json == {"port": a.port}

    run(main)


def test_one_that_wakes_too_slowly_is_found_awake_in_the_end() -> None:
    async def main() -> None:
        async with sleepy(asleep=True) as a, sleepy(asleep=True) as b:
            a.may_wake.clear()
            b.wakes = "503 Service Unavailable"
            parking = {"timeout_seconds": 0.1, "wake_tries": 20, "retry_seconds": 0.05, "rest_seconds": 0.1}
            async with gateway(engines=parked(a, b), health=HEALTH, parking=parking) as joulegate:
                waiting = asyncio.ensure_future(asks(joulegate))
                await until(lambda: a.asked.count("/wake_up") > 2 and len(b.asked) > 1, "they are tried in turn")
                a.may_wake.set()
                assert (await waiting).json == {"port": a.port}
                assert a.calls_asleep == b.calls_asleep == 0

    run(main)


def test_an_engine_without_sleep_mode_is_said_loudly_once_and_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            a.able = b.able = False
            log = tmp_path / "log"
            async with gateway(engines=parked(a, b), health=HEALTH, log=str(log)) as joulegate:
                await until(lambda: state(joulegate, "a") == state(joulegate, "b") == "unable", "both have said it")
                probes = a.probes
                await until(lambda: a.probes > probes + 3, "more probes")
                assert {(await asks(joulegate)).json["port"] for _ in range(2)} == {a.port, b.port}
                _, ready = await control(joulegate, "/ready")
                assert ready["ready"] and "--enable-sleep-mode" in ready["notes"][0]
                assert "joulegate_engine_asleep{" not in joulegate.app.metrics_text(), "unknown is absent, never 0"
            assert [line["engine"] for line in logged(log, "parking_unable")] == ["a", "b"]
            assert len([record for record in caplog.records if "cannot be parked" in record.getMessage()]) == 2
            assert not a.asked and not b.asked

    run(main)


def test_parking_that_fails_is_not_repeated_at_once_and_loses_nothing() -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            b.sleeps = "500 Internal Server Error"
            a.sleeps = "500 Internal Server Error"
            parking = {"retry_seconds": 3600, "rest_seconds": 3600}
            async with gateway(engines=parked(a, b), health=HEALTH, parking=parking) as joulegate:
                await until(lambda: bool(a.asked and b.asked), "both were tried")
                await until(lambda: state(joulegate, "a") == state(joulegate, "b") == "awake", "they are as they were")
                probes = a.probes
                await until(lambda: a.probes > probes + 30, "a while")
                assert len(a.asked) == len(b.asked) == 1
                assert (await asks(joulegate)).status == 200

    run(main)


def test_an_engine_that_was_restarted_while_parked_is_awake() -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b, gateway(engines=parked(a, b), health=HEALTH) as joulegate:
            await until(lambda: state(joulegate, "b") == "asleep", "b is parked")
            scheduler = joulegate.app.gateway.scheduler

            def found_awake() -> int:
                return sum(said.engine == "b" and "found awake" in said.why for said in scheduler.parking.history)

            before = found_awake()
            await b.kill()
            await until(lambda: scheduler.engines["b"].breaker.state == "open", "the probes have seen it")
            assert state(joulegate, "b") == "asleep"
            async with sleepy(port=b.port):
                await until(lambda: found_awake() > before, "the probes have seen it")

    run(main)


@pytest.mark.parametrize(("at_exit", "asleep"), [("wake", False), ("leave", True)])
def test_at_its_end_the_gateway_wakes_what_it_has_parked_or_leaves_it(at_exit: str, asleep: bool) -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            app = App(configuration(engines=parked(a, b), health=HEALTH, parking={"at_exit": at_exit}))
            ports: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            serving = asyncio.ensure_future(app.run(lambda port, _: ports.set_result(port)))
            await ports
            await until(lambda: b.asleep, "b is parked")
            app.stop()
            assert await serving == 0
            assert b.asleep is asleep and not a.asleep

    run(main)


def test_a_second_sigterm_does_not_wait_for_an_engine_to_wake() -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            app = App(configuration(engines=parked(a, b), health=HEALTH))
            ports: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            serving = asyncio.ensure_future(app.run(lambda port, _: ports.set_result(port)))
            await ports
            await until(lambda: b.asleep, "b is parked")
            b.may_wake.clear()
            app.stop()
            await until(lambda: b.asked[-1] == "/wake_up", "it is being woken")
            app.stop()
            assert await serving == 0

    run(main)


def test_an_engine_taken_out_of_the_configuration_is_woken() -> None:
    async def main() -> None:
        async with sleepy() as a, sleepy() as b:
            config = configuration(engines=parked(a, b), health=HEALTH)
            fewer = configuration(engines=[{"url": a.url, "name": "a"}], health=HEALTH)
            app = App(config, lambda: fewer)
            ports: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            serving = asyncio.ensure_future(app.run(lambda port, _: ports.set_result(port)))
            await ports
            await until(lambda: b.asleep and app.gateway.scheduler.parking.sleepers["b"].state == "asleep", "parked")
            app.reload()
            await until(lambda: not b.asleep, "nobody else would wake it")
            app.gateway.scheduler.validate()
            app.stop()
            assert await serving == 0

    run(main)


def test_twins_are_parked_and_woken_by_load(tmp_path: Path) -> None:
    """Two simulated engines as processes, and calls through a gateway."""
    options = "--enable-sleep-mode", "--wake-seconds", "0.05"
    twins = [Twin(tmp_path / f"twin-{name}.log", *options) for name in "ab"]
    try:
        for twin in twins:
            twin.wait_ready_to_serve()

        async def main() -> None:
            parking = {"wake_from_calls": 8}
            async with gateway(engines=parked(*twins), health=HEALTH, parking=parking) as joulegate:

                async def asks_many(count: int) -> None:
                    body = {"model": MODEL, "prompt": "tell me", "max_tokens": 100, "ignore_eos": True}
                    answers = await asyncio.gather(*[joulegate.post("/v1/completions", body) for _ in range(count)])
                    assert [answer.status for answer in answers] == [200] * count

                for _ in range(2):
                    await until(lambda: state(joulegate, "b") == "asleep", "b is parked")
                    while state(joulegate, "b") != "awake":
                        await asks_many(32)
                assert joulegate.app.gateway.scheduler.parking.sleepers["b"].failures == 0

        run(main)
    finally:
        for twin in twins:
            twin.end()
