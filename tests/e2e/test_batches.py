"""Files and batches over sockets: OpenAI's shapes, each line once, restarts, limits, and nobody sees another's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.batches.config import BatchesConfig
from proxy.batches.door import BatchDoor, register
from proxy.keys import generate
from proxy.own.router import Router
from tests.e2e.harness import Answer, RunningGateway, engine, gateway, run, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.harness import EngineRequest

URL = "/v1/chat/completions"
DAY = 86_400.0


class Clock:
    """The time as batches see it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Api:
    """The batch API of one gateway, as the client of one key sees it."""

    def __init__(self, running: RunningGateway, door: BatchDoor, clock: Clock, key: str = "") -> None:
        self.running, self.door, self.clock = running, door, clock
        self.headers = f"authorization: Bearer {key}\r\n" if key else ""

    def with_key(self, key: str) -> Api:
        """The same door for another client."""
        return Api(self.running, self.door, self.clock, key)

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{self.headers}content-type: {kind}\r\n"
        return await self.running.request(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def get(self, path: str) -> Any:
        answer = await self.send("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def upload(self, data: bytes, **fields: str) -> Answer:
        boundary = "----b0undary"
        parts = (
            [f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n']
            if ("purpose" not in fields)
            else []
        )
        parts += [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        return await self.send("POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}")

    async def create(self, file_id: str, **more: Any) -> Answer:
        order = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h", **more}
        return await self.send("POST", "/v1/batches", json.dumps(order).encode())

    async def begin(self, data: bytes, **more: Any) -> str:
        file = (await self.upload(data)).json
        answer = await self.create(file["id"], **more)
        assert answer.status == 200, answer.body
        assert answer.json["status"] in ("validating", "in_progress")
        return str(answer.json["id"])

    async def ended(self, batch_id: str, status: str) -> Any:
        """Wait for a batch's end."""
        await until(lambda: not self.door.work.table.unfinished(), "the batch's end")
        batch = await self.get(f"/v1/batches/{batch_id}")
        assert batch["status"] == status, batch
        return batch

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file of results."""
        if file_id is None:
            return []
        answer = await self.send("GET", f"/v1/files/{file_id}/content")
        assert answer.status == 200 and answer.complete
        return [json.loads(line) for line in answer.body.splitlines()]


@contextlib.asynccontextmanager
async def door(
    running: RunningGateway, state_dir: Path | None = None, clock: Clock | None = None, key: str = "", **config: Any
) -> AsyncIterator[Api]:
    """The batch API on a router of its own, started; closed at the end as at a shutdown."""
    clock = clock or Clock()
    running.app.gateway.router = Router(running.app.gateway.faults)
    opened = register(running.app.gateway.router, running.app.gateway, BatchesConfig(**config), state_dir, clock=clock)
    await opened.start()
    try:
        yield Api(running, opened, clock, key)
    finally:
        await opened.close()
        assert opened.counters().lines_in_flight == 0


def line(custom_id: str, **more: Any) -> dict[str, Any]:
    """A good line."""
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}], **more.pop("body", {})}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body, **more}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """Lines as a file."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in lines)


def asked(request: EngineRequest) -> str:
    """The custom_id that a request of `line` is about."""
    return str(request.json["messages"][0]["content"])


async def echo(request: EngineRequest) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    await request.answer(json.dumps({"id": "x", "said": asked(request), "usage": usage}).encode())


async def waits(request: EngineRequest) -> None:
    await request.gone.wait()


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
                for exchange in running.app.gateway.exchanges.values():
                    seen.append(exchange.call.identity)
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


@pytest.mark.parametrize("batches", [2])
def test_batches_take_turns(batches: int) -> None:
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
            await until(lambda: len(api.door.work.runner._places._asking) >= batches - 1, "the second in the queue")
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


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        done = asyncio.Event()

        async def answer(request: EngineRequest) -> None:
            if len(upstream.requests) <= 5:
                await echo(request)
            else:
                done.set()
                await waits(request)

        async with engine(answer) as upstream:
            async with gateway(upstream) as running, door(running, tmp_path, in_flight=2) as api:
                batch_id = await api.begin(jsonl(*[line(str(index)) for index in range(10)]))
                await done.wait()
                await until(lambda: api.door.work.table.find("-", batch_id).completed == 5, "five on the disk")  # type: ignore[union-attr]
            upstream.answer = echo
            first = [asked(request) for request in upstream.requests]
            async with gateway(upstream) as running, door(running, tmp_path) as api:
                batch = await api.ended(batch_id, "completed")
                assert batch["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
                assert batch["usage"]["total_tokens"] == 50
                results = await api.lines(batch["output_file_id"])
                assert sorted(value["custom_id"] for value in results) == [str(index) for index in range(10)]
                again = [asked(request) for request in upstream.requests[len(first) :]]
                assert len(again) == 5 and not set(again) & set(first[:5])
            async with gateway(upstream) as running, door(running, tmp_path) as api:
                assert (await api.get(f"/v1/batches/{batch_id}")) == batch
                assert (await api.lines(batch["output_file_id"])) == results
                stored = (await api.get("/v1/files"))["data"]
                assert api.door.counters().bytes_on_disk == sum(item["bytes"] for item in stored)

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


def test_nobody_sees_what_is_another_keys() -> None:
    (alice, alice_hash), (bob, bob_hash) = generate(), generate()

    async def main() -> None:
        keys = [{"name": "alice", "sha256": alice_hash}, {"name": "bob", "sha256": bob_hash}]
        async with engine(echo) as upstream, gateway(upstream, keys=keys) as running:
            async with door(running, key=alice) as mine:
                batch = await mine.ended(await mine.begin(jsonl(line("a"))), "completed")
                theirs = mine.with_key(bob)
                for file_id in (batch["input_file_id"], batch["output_file_id"]):
                    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                        foreign = await theirs.send(method, f"/v1/files/{file_id}{tail}")
                        unknown = await theirs.send(method, f"/v1/files/file-0{tail}")
                        assert foreign.assert_error(404) == unknown.assert_error(404)
                for method, tail in (("GET", ""), ("POST", "/cancel")):
                    foreign = await theirs.send(method, f"/v1/batches/{batch['id']}{tail}")
                    unknown = await theirs.send(method, f"/v1/batches/batch_0{tail}")
                    assert foreign.assert_error(404) == unknown.assert_error(404)
                foreign, unknown = (await theirs.create(batch["input_file_id"])), (await theirs.create("file-0"))
                assert foreign.assert_error(404) == unknown.assert_error(404)
                for path in ("/v1/files", "/v1/batches"):
                    assert (await theirs.get(path))["data"] == []
                    after = await theirs.send("GET", f"{path}?after={batch['id']}")
                    assert after.assert_error(404)["param"] == "after"
                    assert len((await mine.get(path))["data"]) > 0
                (await mine.with_key("wrong").send("GET", "/v1/files")).assert_error(401)

    run(main)


def test_a_key_that_is_gone_fails_its_batch(tmp_path: Path) -> None:
    key, digest = generate()

    async def main() -> None:
        keys = [{"name": "k", "sha256": digest}]
        async with engine(waits) as upstream:
            async with gateway(upstream, keys=keys) as running, door(running, tmp_path, key=key) as api:
                batch_id = await api.begin(jsonl(line("a")))
                await until(lambda: bool(upstream.requests), "the call")
            async with gateway(upstream) as running, door(running, tmp_path) as api:
                await until(lambda: not api.door.work.table.unfinished(), "the end")
                batch = api.door.work.table.find("k", batch_id)
                assert batch is not None and batch.status == "failed" and batch.errors[0]["code"] == "key_removed"
                assert len(upstream.requests) == 1

    run(main)


def test_lists_have_pages() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            made = []
            for index in range(5):
                made.append(await api.begin(jsonl(line(str(index)))))
                await api.ended(made[-1], "completed")
                api.clock.now += 1
            first = await api.get("/v1/batches?limit=2")
            assert [batch["id"] for batch in first["data"]] == [made[4], made[3]]
            assert first["has_more"] and (first["first_id"], first["last_id"]) == (made[4], made[3])
            rest = await api.get(f"/v1/batches?limit=100&after={made[3]}")
            assert [batch["id"] for batch in rest["data"]] == made[2::-1] and not rest["has_more"]
            oldest = await api.get("/v1/files?order=asc&limit=1&purpose=batch_output")
            assert oldest["has_more"] and oldest["data"][0]["filename"] == f"{made[0]}_output.jsonl"
            for bad in ("limit=0", "limit=101", "limit=x", "order=up"):
                (await api.send("GET", f"/v1/batches?{bad}")).assert_error(400, "invalid_parameter")

    run(main)


def test_files_go_when_they_are_deleted_or_old() -> None:
    async def main() -> None:
        async with engine(waits) as upstream, gateway(upstream) as running, door(running) as api:
            gone = (await api.upload(jsonl(line("a")))).json["id"]
            answer = await api.send("DELETE", f"/v1/files/{gone}")
            assert answer.json == {"id": gone, "object": "file", "deleted": True}
            (await api.send("GET", f"/v1/files/{gone}")).assert_error(404, "file_not_found")
            short = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
            old = (await api.upload(jsonl(line("a")), **short)).json
            assert old["expires_at"] - old["created_at"] == 3600
            used = (await api.upload(jsonl(line("a")), **short)).json["id"]
            batch_id = (await api.create(used)).json["id"]
            (await api.send("DELETE", f"/v1/files/{used}")).assert_error(400, "file_in_use")
            api.clock.now += 3600
            await api.door.sweep()
            assert [file["id"] for file in (await api.get("/v1/files"))["data"]] == [used]
            await api.send("POST", f"/v1/batches/{batch_id}/cancel")
            batch = await api.ended(batch_id, "cancelled")
            await api.door.sweep()
            assert [file["id"] for file in (await api.get("/v1/files"))["data"]] == [batch["error_file_id"]]
            api.clock.now += 31 * DAY
            await api.door.sweep()
            assert (await api.get("/v1/files"))["data"] == (await api.get("/v1/batches"))["data"] == []
            assert api.door.counters().bytes_on_disk == 0

    run(main)


def test_limits_have_names() -> None:
    async def main() -> None:
        limits = {"file_bytes": 1_000, "key_bytes": 1_500, "key_files": 3, "key_batches": 1, "line_bytes": 500}
        async with engine(waits) as upstream, gateway(upstream) as running, door(running, **limits) as api:
            error = (await api.upload(b"x" * 1_001)).assert_error(413, "file_too_large")
            assert error["param"] == "file"
            assert (await api.upload(b"x" * 1_000)).status == 200
            (await api.upload(b"x" * 600)).assert_error(413, "storage_full")
            file = (await api.upload(jsonl(line("a")))).json["id"]
            assert (await api.upload(b"x")).status == 200
            (await api.upload(b"x")).assert_error(413, "too_many_files")
            assert (await api.create(file)).status == 200
            refused = await api.create(file)
            refused.assert_error(429, "too_many_batches")
            assert refused.header("retry-after") == "30"
            assert api.door.counters().files == 3

    run(main)


def test_full_storage_ends_a_batch_and_says_so() -> None:
    async def main() -> None:
        async def large(request: EngineRequest) -> None:
            await request.answer(json.dumps({"text": "x" * 2_000}).encode())

        async with engine(large) as upstream, gateway(upstream) as running:
            async with door(running, key_bytes=3_000, in_flight=1) as api:
                batch = await api.ended(await api.begin(jsonl(*[line(str(i)) for i in range(6)])), "completed")
                assert batch["request_counts"]["failed"] >= 4
                left = await api.lines(batch["error_file_id"])
                assert {value["error"]["code"] for value in left} == {"storage_full"}
                assert len(upstream.requests) == batch["request_counts"]["completed"] <= 2

    run(main)


def test_bad_requests_name_the_parameter() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            file = (await api.upload(jsonl(line("a")))).json["id"]
            for bad in (
                {"endpoint": "/v1/nothing"},
                {"completion_window": "1h"},
                {"metadata": {"a": 1}},
                {"metadata": {str(index): "" for index in range(17)}},
                {"output_expires_after": {"anchor": "created_at", "seconds": 5}},
                {"surprise": 1},
                {"input_file_id": 7},
            ):
                error = (await api.create(file, **bad)).assert_error(400, "invalid_parameter")
                assert error["param"] == next(iter(bad))
            for fields, param in (
                ({"purpose": "fine-tune"}, "purpose"),
                ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after"),
                ({"expires_after[seconds]": "3600"}, "expires_after"),
                ({"colour": "red"}, "colour"),
            ):
                error = (await api.upload(b"{}\n", **fields)).assert_error(400, "invalid_parameter")
                assert error["param"] == param
            (await api.send("POST", "/v1/files", b"{}")).assert_error(400, "invalid_form")
            error = (await api.upload(b"")).assert_error(400, "invalid_parameter")
            assert error["param"] == "file"
            assert len((await api.get("/v1/files"))["data"]) == 1

    run(main)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running:
            async with door(running, tmp_path) as first:
                batch_id = await first.begin(jsonl(line("a")))
                await first.ended(batch_id, "completed")
                async with door(running, tmp_path) as second:
                    (await second.send("GET", "/v1/files")).assert_error(503, "batches_locked")
                    await first.door.close()
                    second.door.tick()
                    await until(lambda: second.door._work is not None, "the folder")
                    assert [batch["id"] for batch in (await second.get("/v1/batches"))["data"]] == [batch_id]

    run(main)


def test_after_the_close_everything_says_so() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            await api.door.close()
            (await api.send("GET", "/v1/files")).assert_error(503, "draining")
            (await api.upload(b"{}")).assert_error(503, "draining")

    run(main)


def test_a_large_file_streams_to_a_slow_client_whole_or_visibly_cut() -> None:
    async def main() -> None:
        data = jsonl(line("a", body={"pad": "x" * 3_000_000}))
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            file = (await api.upload(data)).json["id"]
            answer = await api.send("GET", f"/v1/files/{file}/content")
            assert answer.body == data and answer.header("content-type") == "application/octet-stream"
            client = await running.connect()
            client.reader._limit = 1  # type: ignore[attr-defined]  # it reads no further by itself
            await client.send(f"GET /v1/files/{file}/content HTTP/1.1\r\nhost: g\r\n\r\n".encode())
            await until(lambda: bool(running.app.gateway.router.tasks), "the download")
            task = next(iter(running.app.gateway.router.tasks))
            await until(lambda: any(c.write_paused for c in running.app.gateway.server.connections), "a full socket")
            task.cancel()
            client.reader._limit = 2**16  # type: ignore[attr-defined]
            cut = await client.answer()
            assert cut.status == 200 and not cut.complete and len(cut.body) < len(data)

    run(main)
