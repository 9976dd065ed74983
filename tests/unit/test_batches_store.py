"""What lies on the disk after a crash is whole or gone; what is counted is what lies there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from proxy.batches import sidefiles
from proxy.batches.config import BatchesConfig
from proxy.batches.files import FileStore, StoredFile, new_id
from proxy.batches.places import Places
from proxy.batches.record import Batch, BatchTable
from proxy.batches.run import Run
from proxy.errors import RequestFault


class Bad(list[str]):
    """Names of files that could not be read."""

    def __call__(self, path: Path, error: Exception) -> None:
        assert str(error)
        self.append(path.name)


def stored(key_name: str = "k", size: int = 3, at: float = 0.0) -> StoredFile:
    """A file to be."""
    return StoredFile(new_id(), key_name, "in.jsonl", "batch", size, at, at + 100.0)


def batch(number: int, key_name: str = "k") -> Batch:
    """A new batch."""
    return Batch(
        f"batch_{number}", key_name, "/v1/completions", "file-1", float(number), 100.0, 50.0, "file-o", "file-e"
    )


def load(folder: Path) -> tuple[FileStore, Bad]:
    """As the next process does."""
    store, bad = FileStore(folder, BatchesConfig()), Bad()
    store.load(bad)
    return store, bad


def test_files_survive_in_their_order(tmp_path: Path) -> None:
    store, _ = load(tmp_path)
    files = [stored(at=float(3 - index)) for index in range(3)]
    for file in files:
        asyncio.run(store.add(file, memoryview(b"abc")))
    again, bad = load(tmp_path)
    assert again.of_key("k") == files[::-1] and not bad
    assert again.bytes_total == store.bytes_total == 9
    assert again.path(files[0].id).read_bytes() == b"abc"
    assert again.find("other", files[0].id) is None and again.of_key("other") == []
    asyncio.run(again.remove(files[0]))
    assert len(again) == 2 and again.bytes_total == 6
    assert len(list(tmp_path.iterdir())) == 4


def test_half_made_files_are_gone(tmp_path: Path) -> None:
    store, _ = load(tmp_path)
    no_data, no_side, garbled, whole = (stored() for _ in range(4))
    for file in (no_data, no_side, garbled, whole):
        asyncio.run(store.add(file, memoryview(b"abc")))
    store.path(no_data.id).unlink()
    (tmp_path / f"{no_side.id}.json").unlink()
    (tmp_path / f"{garbled.id}.json").write_bytes(b"{")
    (tmp_path / "file-y.new").write_bytes(b'{"id": "fi')
    (tmp_path / "file-x.json").write_bytes(orjson.dumps({"id": "file-x", "colour": "red"}))
    again, bad = load(tmp_path)
    assert again.of_key("k") == [whole] and again.bytes_total == 3
    assert not list(tmp_path.glob("*.new")), "what a crash left half written goes"
    assert sorted(bad) == sorted([f"{garbled.id}.json", "file-x.json"])
    assert store.path(garbled.id).exists(), "what cannot be read is left for people to look at"
    assert not store.path(no_side.id).exists() and not (tmp_path / f"{no_data.id}.json").exists()


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = load(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.batches.sidefiles.write", full)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(store.add(stored(), memoryview(b"abc")))
    assert store.bytes_total == len(store) == 0 and list(tmp_path.iterdir()) == []


def test_a_side_file_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file-1.json").mkdir()
    with pytest.raises(OSError, match=r"file-1\.json"):
        sidefiles.write(tmp_path / "file-1.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["file-1.json"]


def test_two_at_once_cannot_both_have_the_last_place(tmp_path: Path) -> None:
    store = FileStore(tmp_path, BatchesConfig(key_bytes=5, key_files=10))

    async def both() -> list[BaseException | None]:
        adding = [store.add(stored(), memoryview(b"abc")) for _ in range(2)]
        return await asyncio.gather(*adding, return_exceptions=True)

    refused = [error for error in asyncio.run(both()) if error is not None]
    assert len(refused) == 1 and isinstance(refused[0], RequestFault) and refused[0].reason == "storage_full"
    assert store.bytes_total == 3 and store.room("k") == 2 and store.room("other") > 2


def test_results_that_were_half_adopted_are_adopted_again(tmp_path: Path) -> None:
    store, _ = load(tmp_path / "files")
    path = tmp_path / "results"
    path.write_bytes(b"abc")
    store.charge("k", 3)
    file = stored()
    asyncio.run(store.adopt(file, path))
    assert store.bytes_total == 3 and not path.exists()
    store.path(file.id).rename(path)  # as if the process had died between its two steps
    again, _ = load(tmp_path / "files")
    assert again.find("k", file.id) is None and again.bytes_total == 0
    again.charge("k", 3)
    asyncio.run(again.adopt(file, path))
    assert load(tmp_path / "files")[0].of_key("k") == [file]


def test_the_table_of_batches(tmp_path: Path) -> None:
    table, bad = BatchTable(tmp_path, BatchesConfig(key_batches_kept=2)), Bad()
    table.load(bad)
    made = [batch(number) for number in range(5)]
    for each in made:
        asyncio.run(table.add(each))
    for each in made[:4]:
        each.turn("completed", 10.0)
        asyncio.run(table.save(each))
    (tmp_path / "batch_4.output").write_bytes(b"kept: it is unfinished")
    (tmp_path / "batch_3.output").write_bytes(b"left behind")
    (tmp_path / "batch_9.json").write_bytes(orjson.dumps({"id": "batch_9", "usage": {}}))
    (tmp_path / "batch_9.output").write_bytes(b"kept: somebody may mend what describes it")
    (tmp_path / "batch_8.output").write_bytes(b"of nothing that is known")
    again = BatchTable(tmp_path, BatchesConfig(key_batches_kept=2))
    again.load(bad)
    assert again.of_key("k") == made and again.unfinished() == made[4:] and bad == ["batch_9.json"]
    assert again.by_state()["completed"] == 4 and again.by_state()["validating"] == 1
    left = sorted(path.name for path in tmp_path.glob("*.output"))
    assert left == ["batch_4.output", "batch_9.output"]
    asyncio.run(again.sweep(11.0))
    assert again.of_key("k") == made[2:], "the oldest finished ones are forgotten"
    asyncio.run(again.sweep(11.0 + BatchesConfig().keep_seconds))
    assert again.of_key("k") == made[4:], "one that is worked on is not"
    assert again.find("other", "batch_4") is None


def test_a_batch_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    table = BatchTable(tmp_path / "missing", BatchesConfig())
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(table.add(batch(1)))
    assert table.of_key("k") == []


def test_places_go_round() -> None:
    async def main() -> None:
        places = Places(2)
        runs = [Run(replace(batch(number)), Path("in"), Path(), 9) for number in range(3)]
        assert places.ask(runs[0]) and places.ask(runs[1]) and not places.ask(runs[2])
        assert not places.ask(runs[2]), "asking twice is asking once"
        runs[0].granted -= 1  # it calls
        assert not places.ask(runs[0])
        places.give_back(1)
        assert (runs[0].granted, runs[2].granted) == (0, 1), "whoever waits longest is next"
        places.leave(runs[2])
        assert (runs[0].granted, runs[2].granted, places.free) == (1, 0, 0)
        places.leave(runs[0])
        places.leave(runs[1])
        assert places.free == 2
        with pytest.raises(AssertionError):
            places.give_back(1)

    asyncio.run(main())
