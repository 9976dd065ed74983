"""Files of batches: lists, limits, deletion, and that nobody sees what is another's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from proxy.keys import generate
from tests.e2e.batch_client import DAY, door, echo, jsonl, line, waits
from tests.e2e.harness import engine, gateway, run, until

if TYPE_CHECKING:
    from tests.e2e.harness import EngineRequest


def test_nobody_sees_what_is_another_keys() -> None:
    (alice, alice_hash), (bob, bob_hash) = generate(), generate()

    async def main() -> None:
        keys = [{"name": "alice", "sha256": alice_hash}, {"name": "bob", "sha256": bob_hash}]
        async with engine(echo) as upstream, gateway(upstream, keys=keys) as running, door(running, key=alice) as mine:
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
        limits: dict[str, Any] = {
            "file_bytes": 1_000,
            "key_bytes": 1_500,
            "key_files": 3,
            "key_batches": 1,
            "line_bytes": 500,
        }
        async with engine(waits) as upstream, gateway(upstream) as running, door(running, **limits) as api:
            error = (await api.upload(b"x" * 1_001)).assert_error(413, "file_too_large")
            assert error["param"] == "file"
            assert (await api.upload(b"x" * 1_000)).status == 200
            (await api.upload(b"x" * 600)).assert_error(413, "storage_full")
            file = (await api.upload(jsonl(line("a")))).json["id"]
            assert (await api.upload(b"x")).status == 200
            (await api.upload(b"x")).assert_error(413, "too_many_files")
            answers = await asyncio.gather(api.create(file), api.create(file))
            taken, refused = sorted(answers, key=lambda answer: answer.status)
            assert taken.status == 200, "one of two at once"
            refused.assert_error(429, "too_many_batches")
            assert refused.header("retry-after") == "30"
            assert api.door.counters().files == 3

    run(main)


def test_full_storage_ends_a_batch_and_says_so() -> None:
    async def main() -> None:
        async def large(request: EngineRequest) -> None:
            await request.answer(json.dumps({"text": "x" * 2_000}).encode())

        limits: dict[str, Any] = {"key_bytes": 3_000, "in_flight": 1}
        async with engine(large) as upstream, gateway(upstream) as running, door(running, **limits) as api:
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


def test_a_large_file_streams_to_a_slow_client_whole_or_visibly_cut() -> None:
    async def main() -> None:
        data = jsonl(line("a", body={"pad": "x" * 24_000_000}))
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            file = (await api.upload(data)).json["id"]
            answer = await api.send("GET", f"/v1/files/{file}/content")
            assert answer.body == data and answer.header("content-type") == "application/octet-stream"
            client = await running.connect()
            reading = cast(asyncio.Transport, client.writer.transport)
            reading.pause_reading()
            await client.send(f"GET /v1/files/{file}/content HTTP/1.1\r\nhost: g\r\n\r\n".encode())
            await until(lambda: bool(running.app.gateway.router.tasks), "the download")
            task = next(iter(running.app.gateway.router.tasks))
            await until(lambda: any(c.write_paused for c in running.app.gateway.server.connections), "a full socket")
            task.cancel()
            reading.resume_reading()
            cut = await client.answer()
            assert cut.status == 200 and not cut.complete and len(cut.body) < len(data)

    run(main)


def test_a_client_that_leaves_leaves_nothing_half_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running, tmp_path) as api:
            add = api.door.work.files.add
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def slow(*arguments: Any) -> None:
                reached.set()
                await go_on.wait()
                await add(*arguments)

            api.door.work.files.add = slow  # type: ignore[assignment, method-assign]
            uploading = asyncio.ensure_future(api.upload(jsonl(line("a"))))
            await reached.wait()
            running.clients[-1].abort()
            await until(lambda: not running.app.gateway.router.tasks, "the handler's end")
            go_on.set()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await uploading
            await until(lambda: not api.door._tasks, "the upload's end")
            (file,) = (await api.get("/v1/files"))["data"]
            assert (tmp_path / "files" / f"{file['id']}.data").read_bytes() == jsonl(line("a"))

    run(main)
