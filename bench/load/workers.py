"""Who plays the configurations of a sweep on the twin? Processes of this host, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.cell import Keeper, file_name, play_virtual
from bench.load.spec import Spec, of
from bench.programs import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self


class WorkerLost(Exception):
    """A process ended by itself, as for want of memory."""


class Done(NamedTuple):
    """A configuration that was played, or could not be."""

    name: str
    """Of its result."""
    calls: int
    error: str = ""


def play_cell(document: dict[str, Any], folder: str, meta: dict[str, Any]) -> Done:
    """All repeats that are missing, in this process; its result is in the folder."""
    from bench.load.run import isolated
    from bench.load.virtual import about

    spec = of(document)
    name = file_name(spec)
    own = {"created_unix_seconds": time.time(), "isolated_source": isolated(spec), "engine": about(spec), **meta}
    calls = 0
    try:
        keeper = Keeper(spec, Path(folder), own, resume=True)
        for repeat in keeper.missing:
            outcome = play_virtual(spec, repeat)
            calls += len(outcome.rows["call"])
            keeper.add(outcome)
    except Exception as error:  # noqa: BLE001  (the others of the sweep are played all the same)
        return Done(
            name, calls, f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)
        )
    return Done(name, calls)


def be_quiet() -> None:
    """Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Pool:
    """Processes of this host."""

    def __init__(self, workers: int) -> None:
        # Spawned: a copy of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=be_quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = list((self._executor._processes or {}).values())
        self._executor.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in processes:  # what they play would be thrown away
                process.terminate()

    def play(self, specs: Sequence[Spec], folder: Path, meta: dict[str, Any]) -> Iterator[Done]:
        """As they end. WorkerLost."""
        futures = [self._executor.submit(play_cell, spec.document(), str(folder), meta) for spec in specs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as broken:
            raise WorkerLost(f"a process of the sweep ended by itself: {broken}") from None


def play_far(document: dict[str, Any], meta: dict[str, Any], earlier: bytes | None) -> tuple[Done, bytes, str]:
    """A configuration on another host: its result as bytes, and its metadata's text."""
    with tempfile.TemporaryDirectory(prefix="joulegate-sweep-") as folder:
        path = Path(folder) / file_name(of(document))
        if earlier is not None:
            path.write_bytes(earlier)
        done = play_cell(document, folder, meta)
        if not path.exists():
            return done, b"", ""
        return done, path.read_bytes(), path.with_suffix(".json").read_text(encoding="utf-8")


class RayPool:
    """A Ray cluster, whose hosts have joulegate[bench] installed in the version of this one."""

    def __init__(self, address: str) -> None:
        """BenchError without Ray, or where no cluster answers."""
        try:
            import ray
        except ImportError:
            raise BenchError("--ray needs Ray: pip install 'joulegate[ray]'") from None
        self._ray = ray
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BenchError(f"--ray {address}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def play(self, specs: Sequence[Spec], folder: Path, meta: dict[str, Any]) -> Iterator[Done]:
        """As they end; results are brought here."""
        ray = self._ray
        far = ray.remote(play_far)
        waiting = {}
        for spec in specs:
            path = folder / file_name(spec)
            earlier = path.read_bytes() if path.exists() else None
            waiting[far.remote(spec.document(), meta, earlier)] = path
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            path = waiting.pop(ready)
            try:
                done, content, text = ray.get(ready)
            except ray.exceptions.RayError as error:
                yield Done(path.name, 0, f"{type(error).__name__}: {error}")
                continue
            if content:
                _put(path, content)
                _put(path.with_suffix(".json"), text.encode())
            yield done


def _put(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise BenchError(f"{path}: {error}; what was done before is kept") from None
