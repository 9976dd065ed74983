"""How is a result kept and read? One Parquet file, whole or not there, and its metadata as JSON beside it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.columns import KINDS, METADATA_KEY, VERSION, names, schema
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    from bench.load.columns import Kind

SUFFIX = ".parquet"
NO_ROOM = "what was done before is kept"


class ResultFault(BenchError):
    """A file that is no result, or that cannot be written."""


def need_pyarrow() -> None:
    """ResultFault that says how to get it, where results cannot be written or read."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ResultFault("results are Parquet files and need pyarrow: pip install 'joulegate[bench]'") from None


class Writer:
    """The result of one configuration as it grows. After each repeat the file is written anew under another name and
    put in the place of the old one: whatever happens, what stands there is whole and says how far it came."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        need_pyarrow()
        self.path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
        self.meta: dict[str, Any] = {"joulegate_result": VERSION, "state": "partial", **meta}
        self._tables: dict[Kind, list[pa.Table]] = {kind: [] for kind in KINDS}
        self.figures: dict[int, dict[str, float | None]] = {}
        """Of the repeats that are whole, by their numbers."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultFault(f"{self.path.parent}: {error.strerror}; name a folder that can be written") from None

    def add(self, rows: dict[Kind, list[dict[str, Any]]]) -> None:
        """Rows of a repeat, kept until `write`. KeyError for a column that the kind does not have."""
        import pyarrow as pa

        table = schema()
        for kind, found in rows.items():
            if not found:
                continue
            known = set(names(kind))
            for row in found:
                if unknown := row.keys() - known:
                    raise KeyError(f"a {kind} has no {', '.join(sorted(unknown))}")
            columns = {
                field.name: [kind] * len(found) if field.name == "row" else [row.get(field.name) for row in found]
                for field in table
            }
            arrays = [pa.array(columns[field.name], field.type) for field in table]
            self._tables[kind].append(pa.Table.from_arrays(arrays, schema=table))

    def resume(self) -> None:
        """Take over the whole repeats of a result of the same configuration that was broken off. ResultFault if the
        file there is another's."""
        import pyarrow.compute as pc

        if not self.path.exists():
            return
        earlier = read(self.path)
        if not same_spec(earlier.meta["spec"], self.meta["spec"]):
            raise ResultFault(f"{self.path}: is the result of another configuration; name another folder")
        self.figures = {int(repeat): figures for repeat, figures in earlier.meta["figures"].items()}
        for kind in KINDS:
            rows = earlier.rows(kind, list(schema().names))
            whole = rows.filter(pc.is_in(rows["repeat"], pa_ints(self.figures)))
            self._tables[kind] = [whole] if whole.num_rows else []
        self.meta = {**earlier.meta, "state": "partial"}

    def write(self, **changes: Any) -> None:
        """Put everything on the disk; `changes` to the metadata. ResultFault if it cannot be: the former file stays."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.meta |= {**changes, "figures": {str(repeat): each for repeat, each in sorted(self.figures.items())}}
        document = json.dumps(self.meta, indent=1, allow_nan=False)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            table_schema = schema().with_metadata({METADATA_KEY: document.encode()})
            with pq.ParquetWriter(fresh, table_schema, compression="zstd") as writer:
                for kind in KINDS:
                    if self._tables[kind]:
                        merged = pa.concat_tables(self._tables[kind]).unify_dictionaries()
                        writer.write_table(merged.replace_schema_metadata(table_schema.metadata))
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.replace(self.path)
            _replace(self.path.with_suffix(".json"), document + "\n")
        except OSError as error:
            raise ResultFault(f"{self.path}: {error}; {NO_ROOM}") from None
        finally:
            fresh.unlink(missing_ok=True)


def same_spec(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """A result that was begun before a member was invented has the usual value of it: its name would say another."""
    return {**now, **earlier} == now


def pa_ints(numbers: Iterable[int]) -> pa.Array:
    """For `is_in`."""
    import pyarrow as pa

    return pa.array(sorted(numbers), pa.int32())


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


class Result(NamedTuple):
    """A result that was read."""

    path: Path
    meta: dict[str, Any]

    def rows(self, kind: Kind, columns: list[str] | None = None) -> pa.Table:
        """Rows of one kind, with its columns or those that are named."""
        import pyarrow.parquet as pq

        wanted = list(columns if columns is not None else names(kind))
        file = pq.ParquetFile(self.path)
        groups = [at for at in range(file.num_row_groups) if self._kind_of(file, at) == kind]
        return file.read_row_groups(groups, columns=wanted)

    @staticmethod
    def _kind_of(file: Any, group: int) -> str:
        """A row group holds one kind: its statistics say which."""
        return str(file.metadata.row_group(group).column(0).statistics.min)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata alone. ResultFault."""
    need_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path).metadata or {}
        meta = json.loads(found[METADATA_KEY])
    except KeyError:
        raise ResultFault(f"{path}: is a Parquet file, but no result of joulegate-bench") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise ResultFault(f"{path}: cannot be read as a result: {error}") from None
    if meta.get("joulegate_result") != VERSION:
        raise ResultFault(f"{path}: is of format {meta.get('joulegate_result')!r}, this version reads {VERSION}")
    assert isinstance(meta, dict)
    return meta


def read(path: Path) -> Result:
    """A result. ResultFault."""
    return Result(path, read_meta(path))
