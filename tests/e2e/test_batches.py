"""Batches over sockets: OpenAI's shapes, every line called once, each its own result, however it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.batches.config import BatchesConfig
from proxy.keys import generate
from tests.e2e.batch_client import DAY, URL, Clock, asked, door, echo, jsonl, line, waits
from tests.e2e.harness import engine, gateway, run, until

if TYPE_CHECKING:
    from tests.e2e.harness import EngineRequest


def test_a_batch_from_upload_to_results() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            if asked(request) == "bad":
                await request.answer(b'{"error": {"message": "too long"}}', status="400 Bad Request")
            else:
                await echo(request)

        async with engine(answer) as upstream, gateway(upstream) as running, door(running) as api:
            file = (await api.upload(jsonl(line("a"), line("bad"), line("b")))).json
            assert file["object"] == "file" and file["purpose"] == "batch" and file["filename"] == "in.jsonl"
            assert file["expires_at"] - file["created_at"] == 30 * DAY
            created = (await api.create(file["id"], metadata={"run": "7"})).json
            assert created["object"] == "batch" and created["metadata"] == {"run": "7"}
            assert created["expires_at"] - created["created_at"] == DAY
            batch = await api.ended(created["id"], "completed")
            assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
            assert batch["model"] == "m" and batch["errors"] is None
            assert batch["usage"] == {
                "input_tokens": 6,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 10,
            }
            assert all(batch[f"{name}_at"] for name in ("in_progress", "finalizing", "completed"))
            outputs = {value["custom_id"]: value for value in await api.lines(batch["output_file_id"])}
            assert outputs.keys() == {"a", "b"}
            assert outputs["a"]["error"] is None and outputs["a"]["id"].startswith("batch_req_")
            assert outputs["a"]["response"]["status_code"] == 200
            assert outputs["a"]["response"]["body"]["said"] == "a"
            (wrong,) = await api.lines(batch["error_file_id"])
            assert wrong["custom_id"] == "bad" and wrong["error"] is None
            assert wrong["response"]["status_code"] == 400
            assert wrong["response"]["body"] == {"error": {"message": "too long"}}
            requests = {asked(request): request for request in upstream.requests}
            assert requests["a"].json == line("a")["body"]
            assert outputs["a"]["response"]["request_id"] == requests["a"].header("x-request-id")
            output = await api.get(f"/v1/files/{batch['output_file_id']}")
            assert output["purpose"] == "batch_output" and output["filename"] == f"{batch['id']}_output.jsonl"
            stored = await api.get("/v1/files")
            assert api.door.counters().bytes_on_disk == sum(item["bytes"] for item in stored["data"])
            assert api.door.counters().batches["completed"] == 1

    run(main)


def test_calls_belong_to_the_batch_and_few_run_at_once() -> None:
    async def main() -> None:
        at_once: list[int] = []
        go_on = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            at_once.append(len(running.app.gateway.exchanges))
            if len(at_once) == 3:
                seen.extend(exchange.call.identity for exchange in running.app.gateway.exchanges.values())
                go_on.set()
            await go_on.wait()
            await echo(request)

        seen: list[Any] = []
        async with engine(answer) as upstream, gateway(upstream) as running, door(running, in_flight=3) as api:
            batch_id = await api.begin(jsonl(*[line(f"n-{index}") for index in range(20)], line("nö")))
            batch = await api.ended(batch_id, "completed")
            assert batch["request_counts"]["completed"] == 21 and max(at_once) == 3
            assert {identity.workflow_id for identity in seen} == {batch_id}
            assert {identity.node for identity in seen} == {"n-0", "n-1", "n-2"}
            assert {identity.workflow_class for identity in seen} == {"batch"}
            assert all(0 < identity.deadline_ms <= DAY * 1e3 for identity in seen)

    run(main)


def test_batches_take_turns() -> None:
    """A small batch does not wait for a large one that came first."""

    async def main() -> None:
        order: list[str] = []
        hold = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            order.append(asked(request)[0])
            if len(order) == 1:
                await hold.wait()
            await echo(request)

        async with engine(answer) as upstream, gateway(upstream) as running, door(running, in_flight=1) as api:
            large = await api.begin(jsonl(*[line(f"a{index}") for index in range(12)]))
            await until(lambda: bool(order), "the first call")
            await api.begin(jsonl(line("b0"), line("b1")))
            await until(lambda: bool(api.door.work.runner._places._asking), "the second in the queue")
            hold.set()
            await api.ended(large, "completed")
            assert order.index("b") < 4 and len(order) - order[::-1].index("b") < 8, order

    run(main)


def test_refused_lines_wait_and_come_again() -> None:
    """A key's limit is no failure of a line."""
    key, digest = generate()

    async def main() -> None:
        config = [{"name": "k", "sha256": digest, "max_concurrency": 2}]
        async with engine(echo) as upstream, gateway(upstream, keys=config) as running:
            clock = Clock()
            async with door(running, None, clock, key) as api:
                batch_id = await api.begin(jsonl(*[line(str(index)) for index in range(30)]))

                def passes() -> bool:
                    clock.now += 0.2
                    api.door.tick()
                    return not api.door.work.table.unfinished()

                await until(passes, "the end")
                batch = await api.ended(batch_id, "completed")
                assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
                assert sorted(map(asked, upstream.requests), key=int) == [str(index) for index in range(30)]

    run(main)


def test_a_line_may_be_held_until_the_window_ends() -> None:
    """The times that calls may wait are for clients that wait too."""

    async def main() -> None:
        free = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            await free.wait()
            await echo(request)

        tables: dict[str, Any] = {
            "policy": {"name": "fifo", "max_in_flight": 1},
            "timeouts": {"queue_seconds": 0.1, "total_seconds": 0.3},
        }
        body = line("first")["body"]
        async with (
            engine(answer) as upstream,
            gateway(upstream, **tables) as running,
            door(running, in_flight=1) as api,
        ):
            first = asyncio.ensure_future(running.post(URL, body))
            await until(lambda: len(upstream.requests) == 1, "the engine is full")
            batch_id = await api.begin(jsonl(line("patient")))
            batch = api.door.work.runner._runs[batch_id]
            await until(lambda: bool(batch.calls), "its line waits")
            [held] = batch.calls.values()
            (await running.post(URL, body)).assert_error(503, "queue_timeout")
            (await first).assert_error(504, "total_timeout")
            await until(lambda: len(upstream.requests) == 2, "its turn")
            assert asked(upstream.requests[1]) == "patient" and list(batch.calls.values()) == [held]
            free.set()
            assert (await api.ended(batch_id, "completed"))["request_counts"]["completed"] == 1

    run(main)


def test_a_lost_engine_is_tried_again_but_not_for_ever() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            # (reset within the answer: before it the gateway itself would try once more)
            tries = [asked(other) for other in upstream.requests].count(asked(request))
            if asked(request) == "poison" or (asked(request) == "unlucky" and tries == 1):
                await request.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
                request.reset()
            else:
                await echo(request)

        health = {"failures_to_open": 100}
        async with engine(answer) as upstream, gateway(upstream, health=health) as running, door(running) as api:
            batch_id = await api.begin(jsonl(line("unlucky"), line("poison"), line("fine")))

            def passes() -> bool:
                api.clock.now += 1.0
                api.door.tick()
                return not api.door.work.table.unfinished()

            await until(passes, "the end")
            batch = await api.ended(batch_id, "completed")
            assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
            (wrong,) = await api.lines(batch["error_file_id"])
            assert wrong["custom_id"] == "poison" and wrong["response"] is None
            assert wrong["error"]["code"] == "engine_reset"
            assert [asked(request) for request in upstream.requests].count("poison") == BatchesConfig().attempts

    run(main)


def test_cancel_frees_the_engine_and_keeps_what_is_done() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await (echo(request) if asked(request) == "quick" else waits(request))

        async with engine(answer) as upstream, gateway(upstream) as running, door(running) as api:
            batch_id = await api.begin(jsonl(line("quick"), line("slow"), line("slower")))
            await until(lambda: api.door.work.table.find("-", batch_id).completed == 1, "one done")  # type: ignore[union-attr]
            await until(lambda: len(upstream.requests) == 3, "the calls")
            answer_ = await api.send("POST", f"/v1/batches/{batch_id}/cancel")
            assert answer_.json["status"] in ("cancelling", "finalizing", "cancelled")
            batch = await api.ended(batch_id, "cancelled")
            assert batch["cancelling_at"] and batch["cancelled_at"]
            assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
            assert [value["custom_id"] for value in await api.lines(batch["output_file_id"])] == ["quick"]
            left = await api.lines(batch["error_file_id"])
            assert {value["custom_id"] for value in left} == {"slow", "slower"}
            assert {value["error"]["code"] for value in left} == {"batch_cancelled"}
            await until(running.idle, "the engine free")
            (await api.send("POST", f"/v1/batches/{batch_id}/cancel")).assert_error(400, "batch_ended")

    run(main)


def test_the_window_ends() -> None:
    async def main() -> None:
        async def answer(request: EngineRequest) -> None:
            await (echo(request) if asked(request) == "quick" else waits(request))

        async with engine(answer) as upstream, gateway(upstream) as running, door(running) as api:
            batch_id = await api.begin(jsonl(line("quick"), line("slow")))
            await until(lambda: api.door.work.table.find("-", batch_id).completed == 1, "one done")  # type: ignore[union-attr]
            await until(lambda: len(upstream.requests) == 2, "the calls")
            api.clock.now += DAY
            api.door.tick()
            batch = await api.ended(batch_id, "expired")
            assert batch["expired_at"] == batch["expires_at"]
            (left,) = await api.lines(batch["error_file_id"])
            assert left["custom_id"] == "slow" and left["response"] is None
            assert left["error"]["code"] == "batch_expired"

    run(main)


def test_a_bad_file_fails_the_batch_with_its_lines() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            data = jsonl(line("a"), line("a")) + b"{\n" + jsonl(line("s", body={"stream": True}))
            batch = await api.ended(await api.begin(data), "failed")
            assert batch["failed_at"] and batch["output_file_id"] is None and batch["error_file_id"] is None
            assert batch["errors"]["object"] == "list"
            found = [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]]
            assert found == [
                (2, "duplicate_custom_id", "custom_id"),
                (3, "invalid_json_line", None),
                (4, "invalid_request", "body.stream"),
            ]
            assert not upstream.requests

    run(main)


def test_a_fault_of_ours_ends_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def broken(batch_id: str, answers: object) -> None:
            raise ZeroDivisionError

        async with engine(echo) as upstream, gateway(upstream) as running, door(running, in_flight=2) as api:
            monkeypatch.setattr("proxy.batches.results.write", broken)
            batch = await api.ended(await api.begin(jsonl(*[line(str(i)) for i in range(5)])), "failed")
            assert batch["errors"]["data"][0]["code"] == "internal_error"
            running.faults_expected = 1
            monkeypatch.undo()
            assert (await api.ended(await api.begin(jsonl(line("a"), line("b"), line("c"))), "completed"))["usage"]
            assert api.door.work.runner._places.free == 2, "no place is lost"

    run(main)
