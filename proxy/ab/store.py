"""Where do experiments lie on disk? A folder each in `state_dir/experiments`: `state.json`, and `blocks.jsonl`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson

from scheduler.experiments.saved import head

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scheduler.experiments.definition import Definition

STATE, BLOCKS = "state.json", "blocks.jsonl"


class StoreFault(ValueError):
    """A file of an experiment that is not what it should be; the message names it."""


class ExperimentStore:
    """All experiments of a gateway. Methods raise OSError where the disk does not do its part."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "experiments"
        self._written: dict[str, set[tuple[int, int]]] = {}
        """(block, arm) of the rows that are in the file: after a kill, one may be told again."""

    def begin(self, definition: Definition, started_at: float, pace: float = 1.0) -> None:
        """A new one. FileExistsError if there was one of that id."""
        (self.folder / definition.id).mkdir(parents=True)
        with (self.folder / definition.id / BLOCKS).open("xb") as file:
            _durably(file, orjson.dumps(head(definition, started_at, pace)) + b"\n")
        self._written[definition.id] = set()

    def forget(self, experiment: str) -> None:
        """One that could not be started after all."""
        for name in (STATE, BLOCKS):
            (self.folder / experiment / name).unlink(missing_ok=True)
        (self.folder / experiment).rmdir()

    def go_on(self, experiment: str) -> None:
        """Of an earlier process: a last line that was cut off is taken away. StoreFault."""
        path = self.folder / experiment / BLOCKS
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            records = [orjson.loads(line) for line in whole.splitlines()[1:]]
            written = {(int(record["number"]), int(record["arm"])) for record in records if "number" in record}
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise StoreFault(f"{path} is damaged ({error!r}); move its folder away to go on without it") from None
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self._written[experiment] = written

    def append(self, experiment: str, records: Iterable[dict[str, Any]]) -> None:
        """Rows of closed blocks, or the last line."""
        known = self._written.setdefault(experiment, set())
        new = [record for record in records if "number" not in record or (record["number"], record["arm"]) not in known]
        with (self.folder / experiment / BLOCKS).open("ab") as file:
            _durably(file, b"".join(orjson.dumps(record) + b"\n" for record in new))
        known.update((record["number"], record["arm"]) for record in new if "number" in record)

    def save(self, experiment: str, state: dict[str, Any]) -> None:
        """Whole or not at all, whatever happens meanwhile."""
        path = self.folder / experiment / STATE
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            _durably(file, orjson.dumps(state))
        fresh.replace(path)

    def state(self, experiment: str) -> dict[str, Any] | None:
        """As it was saved last; None: there is no such experiment. StoreFault."""
        path = self.folder / experiment / STATE
        try:
            state = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise StoreFault(f"{path} is damaged ({error}); move its folder away to go on without it") from None
        if not isinstance(state, dict):
            raise StoreFault(f"{path} is damaged; move its folder away to go on without it")
        return state

    def blocks(self, experiment: str) -> Path | None:
        """The file of closed blocks."""
        path = self.folder / experiment / BLOCKS
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """Of all that there are, running or over."""
        if not self.folder.is_dir():
            return []
        return sorted(each.name for each in self.folder.iterdir() if (each / BLOCKS).is_file())


def _durably(file: Any, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
