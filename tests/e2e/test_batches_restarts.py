"""Batches over restarts and full disks: what is on the disk is where it goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.batches.disk import AGAIN_SECONDS
from proxy.batches.door import BatchDoor, Work
from proxy.batches.record import BatchTable
from proxy.batches.results import Results
from proxy.keys import generate
from tests.e2e.batch_client import asked, door, echo, jsonl, line, waits
from tests.e2e.harness import engine, gateway, run, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.harness import EngineRequest


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


def test_an_end_that_was_cut_short_is_ended_by_the_next_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(echo) as upstream:
            async with gateway(upstream) as running, door(running, tmp_path) as api:
                batch = await api.ended(await api.begin(jsonl(line("a"), line("b"))), "completed")
                results = await api.lines(batch["output_file_id"])
            # As if the process had died after the side file of the results was written, and before they were moved.
            side = tmp_path / "batches" / f"{batch['id']}.json"
            record = json.loads(side.read_bytes())
            assert record["ending"] == "completed"
            side.write_text(json.dumps({**record, "status": "finalizing", "has_output": False}))
            data = tmp_path / "files" / f"{batch['output_file_id']}.data"
            data.rename(tmp_path / "batches" / f"{batch['id']}.output")
            async with gateway(upstream) as running, door(running, tmp_path) as api:
                again = await api.ended(batch["id"], "completed")
                assert again["request_counts"] == batch["request_counts"] and again["usage"] == batch["usage"]
                assert await api.lines(again["output_file_id"]) == results
                stored = (await api.get("/v1/files"))["data"]
                assert api.door.counters().bytes_on_disk == sum(item["bytes"] for item in stored)
            assert len(upstream.requests) == 2

    run(main)


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running, tmp_path) as first:
            batch_id = await first.begin(jsonl(line("a")))
            await first.ended(batch_id, "completed")
            async with door(running, tmp_path) as second:
                (await second.send("GET", "/v1/files")).assert_error(503, "batches_locked")
                await first.door.close()
                second.door.tick()
                await until(lambda: second.door._work is not None, "the folder")
                assert [batch["id"] for batch in (await second.get("/v1/batches"))["data"]] == [batch_id]

    run(main)


def test_a_folder_that_cannot_be_read_at_first_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock on it is let go meanwhile: this process must not take itself for another one."""

    async def main() -> None:
        async with (
            engine(echo) as upstream,
            gateway(upstream) as running,
            door(running, tmp_path) as first,
            door(running, tmp_path) as second,
        ):
            await first.door.close()
            load = BatchTable.load

            def fails_once(self: BatchTable, bad: Callable[[Path, Exception], None]) -> None:
                monkeypatch.setattr(BatchTable, "load", load)
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(BatchTable, "load", fails_once)
            second.door.tick()
            await until(lambda: not second.door._opening, "the first try")
            (await second.send("GET", "/v1/batches")).assert_error(503, "batches_locked")
            second.door.tick()
            await until(lambda: not second.door._opening, "the second try")
            assert (await second.get("/v1/batches"))["data"] == []

    run(main)


def test_a_close_while_the_folder_is_taken_begins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        go = threading.Event()
        take_folder = BatchDoor._take_folder

        def takes_long(self: BatchDoor) -> Work | None:
            work = take_folder(self)
            assert go.wait(10)
            return work

        async with engine(waits) as upstream, gateway(upstream) as running, door(running, tmp_path) as first:
            await first.begin(jsonl(line("a")))
            await until(lambda: len(upstream.requests) == 1, "the call")
            async with door(running, tmp_path) as second:
                await first.door.close()
                monkeypatch.setattr(BatchDoor, "_take_folder", takes_long)
                second.door.tick()
                closing = asyncio.ensure_future(second.door.close())
                await asyncio.sleep(0)
                go.set()
                await closing
                assert second.door._work is None and len(upstream.requests) == 1
            async with door(running, tmp_path) as third:
                await until(lambda: len(upstream.requests) == 2, "the call, again")
                assert third.door.counters().lines_in_flight == 1

    run(main)


def test_after_the_close_everything_says_so() -> None:
    async def main() -> None:
        async with engine(echo) as upstream, gateway(upstream) as running, door(running) as api:
            await api.door.close()
            (await api.send("GET", "/v1/files")).assert_error(503, "draining")
            (await api.upload(b"{}")).assert_error(503, "draining")

    run(main)


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is written later, once, and no line is called again for it."""

    async def main() -> None:
        tries: list[int] = []
        append = Results.append

        def fails_twice(self: Results, data: bytes) -> None:
            tries.append(len(data))
            if len(tries) <= 2:
                with self.path.open("ab") as file:
                    file.write(data[:20])  # as a full disk does
                raise OSError(28, "No space left on device")
            append(self, data)

        monkeypatch.setattr(Results, "append", fails_twice)
        async with engine(echo) as upstream, gateway(upstream) as running, door(running, tmp_path) as api:
            batch_id = await api.begin(jsonl(*[line(str(index)) for index in range(5)]))
            for count in (1, 2):
                await until(lambda count=count: len(tries) == count, "a try")  # type: ignore[misc]
                api.door.tick()
                assert len(tries) == count, "not again at once"
                api.clock.now += AGAIN_SECONDS
                api.door.tick()
            batch = await api.ended(batch_id, "completed")
            results = await api.lines(batch["output_file_id"])
            assert sorted(value["custom_id"] for value in results) == list("01234")
            assert len(upstream.requests) == 5

    run(main)
