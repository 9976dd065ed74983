"""The control plane, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.control import Control, start_control
from proxy.metrics import GaugeSnapshot, Metrics
from tests.e2e.harness import Answer, Client, EngineRequest, RunningGateway, engine, gateway, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = {"model": "m", "messages": []}
STREAM = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


async def respond(request: EngineRequest) -> None:
    """A plain answer with usage."""
    await request.answer(b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}')


async def ask(port: int, data: bytes) -> Answer:
    """One raw request."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(data)
    answer = await client.answer(no_body=data.startswith(b"HEAD"))
    client.close()
    return answer


async def get(port: int, path: str, headers: str = "", *, host: str = "localhost", method: str = "GET") -> Answer:
    """One request; `host` as the Host header says it."""
    return await ask(port, f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n".encode())


def sample(text: str, name: str, **labels: str) -> float | None:
    """A sample of a scrape by its name and some of its labels; None = it is not there."""
    for family in parse_text(text):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return float(found.value)
    return None


def assert_error(answer: Answer, status: int, code: str) -> None:
    """An error of the control plane as JSON."""
    assert answer.status == status, answer.body
    assert answer.header("content-type") == "application/json"
    error = answer.json["error"]
    assert error["code"] == code
    assert "Traceback" not in error["message"]


@contextlib.asynccontextmanager
async def control(
    *,
    host: str = "127.0.0.1",
    public: bool = False,
    allowed_hosts: tuple[str, ...] = (),
    state: Any = dict,
) -> AsyncIterator[Control]:
    """A control plane of its own, with no gateway behind it."""
    running = await start_control(
        host,
        0,
        public=public,
        state=state,
        ready=lambda: (True, []),
        metrics=Metrics(GaugeSnapshot),
        allowed_hosts=allowed_hosts,
    )
    try:
        yield running
    finally:
        await running.close()


def test_calls_show_up_in_the_metrics_in_both_formats() -> None:
    async def main() -> None:
        async def stream(request: EngineRequest) -> None:
            await request.begin_stream()
            for _ in range(3):
                await request.chunk(STREAM)
            await request.end_stream()

        async with engine(stream) as vllm, gateway(vllm) as joulegate:
            assert (await joulegate.post("/v1/chat/completions", {**CHAT, "stream": True})).status == 200
            (await joulegate.post("/v1/chat/completions", b"{")).assert_error(400)
            await until(joulegate.idle, "the call has ended")
            port, name = joulegate.control_port, f"127.0.0.1:{vllm.port}"
            answer = await get(port, "/metrics")
            assert answer.status == 200
            assert (answer.header("content-type") or "").startswith("text/plain; version=0.0.4")
            text = answer.body.decode()
            assert sample(text, "joulegate_calls_total", outcome="ok", engine=name, model="m") == 1
            assert sample(text, "joulegate_calls_total", outcome="refused", reason="invalid_json") == 1
            assert sample(text, "joulegate_calls_without_usage_total", engine=name) == 1
            assert sample(text, "joulegate_time_to_first_token_seconds_count") == 1
            assert sample(text, "joulegate_engine_up", engine=name) == 1
            assert sample(text, "joulegate_engine_running_calls", engine=name) == 3
            assert sample(text, "joulegate_engine_waiting_calls", engine=name) is None, "the engine did not say"
            assert sample(text, "joulegate_engine_breaker_state", engine=name) == 0
            assert sample(text, "joulegate_calls_held") == 0
            accept = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n"
            answer = await get(port, "/metrics", accept)
            assert (answer.header("content-type") or "").startswith("application/openmetrics-text; version=1.0.0")
            families = {family.name: family for family in parse_openmetrics(answer.body.decode())}
            assert families["joulegate_calls"].type == "counter"
            assert families["joulegate_build"].type == "info"

    run(main)


def test_every_outcome_of_a_failing_engine_is_counted() -> None:
    async def main() -> None:
        async def reset(request: EngineRequest) -> None:
            request.reset()

        async with engine(reset) as vllm, gateway(vllm) as joulegate:
            (await joulegate.post("/v1/chat/completions", CHAT)).assert_error(502)
            text = (await get(joulegate.control_port, "/metrics")).body.decode()
            name = f"127.0.0.1:{vllm.port}"
            assert sample(text, "joulegate_calls_total", outcome="engine_lost", engine=name) == 1
            assert sample(text, "joulegate_attempts_failed_total", engine=name, reason="engine_reset") == 2
            assert sample(text, "joulegate_retries_total") == 1

    run(main)


def test_metrics_are_read_where_nothing_changes_them_meanwhile() -> None:
    read_in = []

    def gauges() -> GaugeSnapshot:
        read_in.append(threading.current_thread())
        return GaugeSnapshot()

    async def main() -> None:
        running = await start_control(
            "127.0.0.1", 0, public=False, state=dict, ready=lambda: (True, []), metrics=Metrics(gauges)
        )
        assert (await get(running.port, "/metrics")).status == 200
        await running.close()

    run(main)
    assert read_in == [threading.current_thread()]


def test_ready_says_why_not() -> None:
    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:
            port = joulegate.control_port
            answer = await get(port, "/ready")
            assert (answer.status, answer.json) == (200, {"ready": True, "reasons": []})
            vllm.healthy = False
            await until(lambda: not joulegate.app.ready()[0], "the probe saw it")
            answer = await get(port, "/ready")
            assert answer.status == 503 and answer.json["ready"] is False
            assert any(f"127.0.0.1:{vllm.port}" in reason for reason in answer.json["reasons"]), answer.json
            assert (await get(port, "/health")).status == 200, "the process itself serves"
            vllm.healthy = True
            await until(lambda: joulegate.app.ready()[0], "the probe saw it")
            assert (await get(port, "/ready")).status == 200

    run(main)


def test_draining_is_not_ready_and_state_shows_the_running_call() -> None:
    async def main() -> None:
        held: asyncio.Future[EngineRequest] = asyncio.get_running_loop().create_future()
        go_on = asyncio.Event()

        async def hold(request: EngineRequest) -> None:
            held.set_result(request)
            await go_on.wait()
            await respond(request)

        async with engine(hold) as vllm, gateway(vllm) as joulegate:
            port = joulegate.control_port
            asking = asyncio.ensure_future(joulegate.post("/v1/chat/completions", CHAT, "x-workflow-id: run-1\r\n"))
            await held
            state = (await get(port, "/admin/state")).json
            assert state["calls_running"] == state["process"]["calls"] == 1
            assert [call["workflow"] for call in state["calls"]] == ["run-1"]
            text = (await get(port, "/metrics")).body.decode()
            assert sample(text, "joulegate_engine_calls_in_flight", engine=f"127.0.0.1:{vllm.port}") == 1
            assert (sample(text, "joulegate_client_connections") or 0) >= 1
            joulegate.app.stop()
            await until(lambda: joulegate.app.gateway.scheduler.draining, "it drains")
            answer = await get(port, "/ready")
            assert answer.status == 503 and "draining" in answer.json["reasons"]
            assert (await get(port, "/health")).status == 200
            go_on.set()
            assert (await asking).status == 200

    run(main)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8081",
        "127.0.0.1:1",
        "127.8.8.8",
        "[::1]",
        "[::1]:8081",
        "ops.example:8081",
        "OPS.example",
    ],
)
def test_hosts_that_may_ask(host: str) -> None:
    async def main() -> None:
        async with control(allowed_hosts=("ops.example",)) as running:
            assert (await get(running.port, "/health", host=host)).status == 200

    run(main)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8081",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]",
        "",
        "[",
    ],
)
def test_a_name_that_was_rebound_to_loopback_gets_nothing(host: str) -> None:
    async def main() -> None:
        async with control(allowed_hosts=("ops.example",)) as running:
            for path in ("/metrics", "/admin/state", "/nothing"):
                answer = await get(running.port, path, f"origin: http://{host}\r\n", host=host)
                assert_error(answer, 403, "host")
                assert answer.header("access-control-allow-origin") is None

    run(main)


def test_a_public_control_plane_answers_to_any_name() -> None:
    async def main() -> None:
        async with control(public=True) as running:
            assert (await get(running.port, "/health", host="gateway:8081")).status == 200

    run(main)


def test_its_own_address_may_ask_and_http_1_0_needs_no_host() -> None:
    async def main() -> None:
        async with control(host="0.0.0.0") as running:
            assert (await get(running.port, "/health", host="0.0.0.0:1")).status == 200
            assert (await ask(running.port, b"GET /health HTTP/1.0\r\n\r\n")).json == {"status": "ok"}

    run(main)


def test_errors_are_json() -> None:
    async def main() -> None:
        async with control() as running:
            assert_error(await get(running.port, "/"), 404, "not_found")
            assert_error(await get(running.port, "/admin/state/"), 404, "not_found")
            answer = await get(running.port, "/metrics", "content-length: 0\r\n", method="POST")
            assert_error(answer, 405, "method")
            assert answer.header("allow") == "GET,HEAD"
            answer = await get(running.port, "/health", method="HEAD")
            assert (answer.status, answer.body) == (200, b"")

    run(main)


def test_a_fault_inside_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, Any]:
        raise ZeroDivisionError("the operator may know")

    async def main() -> None:
        async with control(state=broken) as running:
            answer = await get(running.port, "/admin/state")
            assert_error(answer, 500, "internal")
            assert b"operator may know" not in answer.body
            assert (await get(running.port, "/health")).status == 200

    run(main)
    assert "ZeroDivisionError: the operator may know" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nfoo\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["tls", "header", "long"],
)
def test_garbage_is_400_in_one_line_of_log(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with control() as running:
            answer = await ask(running.port, garbage)
            assert answer.status == 400
            assert b"Traceback" not in answer.body and b"<html" not in answer.body
            assert (await get(running.port, "/health")).status == 200

    run(main)
    records = [record for record in caplog.records if record.name.startswith(("joulegate", "aiohttp"))]
    assert len(records) <= 1
    for record in records:
        assert record.exc_info is None and "\n" not in record.getMessage()


def test_a_taken_port_is_an_error_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with control() as running:
            with pytest.raises(OSError, match="address already in use"):
                await start_control(
                    "127.0.0.1",
                    running.port,
                    public=False,
                    state=dict,
                    ready=lambda: (True, []),
                    metrics=Metrics(GaugeSnapshot),
                )
            assert (await get(running.port, "/health")).status == 200

    run(main)


def test_a_scrape_under_traffic_stays_whole() -> None:
    """The words are made beside the event loop while calls go on being counted."""

    async def main() -> None:
        async with engine(respond) as vllm, gateway(vllm) as joulegate:

            async def call(number: int) -> None:
                headers = f"x-workflow-id: run-{number}\r\n"
                assert (await joulegate.post("/v1/chat/completions", CHAT, headers)).status == 200

            async def scrape(running: RunningGateway) -> None:
                text = (await get(running.control_port, "/metrics")).body.decode()
                counted = sample(text, "joulegate_calls_total", outcome="ok") or 0
                assert sample(text, "joulegate_call_duration_seconds_count") == counted
                assert (sample(text, "joulegate_tokens_total", kind="output") or 0) == 3 * counted

            await asyncio.gather(*(call(number) for number in range(40)), *(scrape(joulegate) for _ in range(8)))
            await scrape(joulegate)
            state = json.loads((await get(joulegate.control_port, "/admin/state")).body)
            assert state["workflows_seen"] == 40

    run(main)
