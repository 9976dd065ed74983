"""`joulegate-bench sweep`: all configurations of a file, a result each; goes on where it was broken off."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load.cell import Keeper, file_name
from bench.load.environment import environment
from bench.load.figures import table
from bench.load.load import trace_of
from bench.load.options import folder
from bench.load.progress import Progress
from bench.load.results import ResultFault, need_pyarrow, read_meta, same_spec
from bench.load.run import INTERRUPTED, add_live_options, labels_of
from bench.load.sweep_file import Sweep, read_sweep
from bench.load.workers import Done, Pool, RayPool, WorkerLost
from bench.programs import BenchError

if TYPE_CHECKING:
    import argparse

    from bench.load.spec import Spec

VERSION = 1
INDEX = "sweep.json"
ROWS_SHOWN = 40
WRITE_SECONDS = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sweep`."""
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="fixed values and grids: docs/bench.md")
    parser.add_argument("--out", type=folder, metavar="FOLDER", help="(default: results/ and the file's name)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes, on the twin (default: all cores)")
    parser.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster instead: its address, or auto or local")
    parser.add_argument("--check", action="store_true", help="check the file, say how many plays it asks for, and end")
    add_live_options(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 where configurations failed; 130 after Ctrl-C. BenchError before anything was run."""
    need_pyarrow()
    sweep = read_sweep(args.file)
    live = [spec for spec in sweep.cells if not spec.simulated]
    if live and len(live) < len(sweep.cells):
        raise BenchError(f"{args.file}: a sweep is on the twin or on real engines, not on both")
    for trace in sorted({spec.trace for spec in sweep.cells if spec.trace is not None}):
        trace_of(trace)
    plays = sum(spec.repeats for spec in sweep.cells)
    if args.check:
        print(f"{args.file}: {len(sweep.cells)} configurations, {plays} plays")
        return 0
    if live and (args.ray or args.workers):
        raise BenchError("--workers and --ray are for the twin: real engines are played one after the other")
    if args.workers is not None and args.workers < 1:
        raise BenchError(f"--workers must be at least 1, not {args.workers}")
    if args.out is None:
        args.out = Path("results") / args.file.stem
    index = Index(args, sweep)
    return _live(args, sweep, index) if live else _virtual(args, index)


class Index:
    """`sweep.json` in the folder: which configurations there are, and how far each is."""

    def __init__(self, args: argparse.Namespace, sweep: Sweep) -> None:
        """Looks at what is there already. BenchError if the folder holds something else."""
        self.folder: Path = args.out
        self.sweep = sweep
        self._argv = args.argv
        self.states = {file_name(spec): "missing" for spec in sweep.cells}
        self.errors: dict[str, str] = {}
        self._next_write = 0.0
        for spec in sweep.cells:
            path = self.folder / file_name(spec)
            if path.exists():
                try:
                    meta = read_meta(path)
                except ResultFault:
                    continue  # written over
                if not same_spec(meta["spec"], spec.document()):
                    raise BenchError(f"{path} is of another configuration: name another --out, or remove it")
                self.states[path.name] = "complete" if meta["state"] == "complete" else "partial"

    def missing(self) -> list[Spec]:
        """What is still to be played."""
        return [spec for spec in self.sweep.cells if self.states[file_name(spec)] != "complete"]

    def write(self, state: str) -> None:
        """BenchError if the disk is full."""
        document = {
            "joulegate_sweep": VERSION,
            "state": state,
            "file": self.sweep.text,
            "command": ["joulegate-bench", *self._argv],
            "cells": [
                {"result": name, "state": self.states[name], "error": self.errors.get(name), "spec": spec.document()}
                for spec in self.sweep.cells
                for name in (file_name(spec),)
            ],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = self.folder / f".{INDEX}.{os.getpid()}"
            fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.folder / INDEX)
        except OSError as error:
            raise BenchError(f"{self.folder / INDEX}: {error}; results that are there are kept") from None

    def write_now_and_then(self) -> None:
        """That it is under way. Each result says of itself whether it is whole."""
        if time.monotonic() >= self._next_write:
            self._next_write = time.monotonic() + WRITE_SECONDS
            self.write("partial")

    def take(self, done: Done) -> None:
        """One configuration is over."""
        self.states[done.name] = "failed" if done.error else "complete"
        if done.error:
            self.errors[done.name] = done.error
        else:
            self.errors.pop(done.name, None)


def _virtual(args: argparse.Namespace, index: Index) -> int:
    todo = index.missing()
    progress = _begun(index, todo)
    meta = {"time_source": "simulated", "environment": environment(args.argv, gpu=False)}
    if not todo:
        return _tell(index, progress)
    pool = RayPool(args.ray) if args.ray else Pool(args.workers or len(os.sched_getaffinity(0)))
    try:
        index.write("partial")
        with pool:
            for done in pool.play(todo, index.folder, meta):
                index.take(done)
                progress.next(done.name.removesuffix(".parquet"))
                progress.done(done.error or f"{done.calls:,} calls")
                index.write_now_and_then()
    except KeyboardInterrupt:
        return _broken_off(index, progress)
    except WorkerLost as lost:
        index.write("interrupted")
        raise BenchError(f"{lost}; what was done is kept: the same command goes on") from None
    return _tell(index, progress)


def _begun(index: Index, todo: list[Spec]) -> Progress:
    progress = Progress(max(1, len(todo)))
    there = len(index.sweep.cells) - len(todo)
    known = f", {there} of them there already" if there else ""
    progress.screen.say(f"{len(index.sweep.cells)} configurations{known}; results go to {index.folder}")
    return progress


def _broken_off(index: Index, progress: Progress) -> int:
    index.write("interrupted")
    progress.screen.raw("")
    left = len(index.missing())
    print(f"joulegate-bench: interrupted, {left} configurations left; the same command goes on", file=sys.stderr)
    return INTERRUPTED


def _tell(index: Index, progress: Progress) -> int:
    failed = [name for name, state in index.states.items() if state == "failed"]
    index.write("complete" if not index.missing() else "partial")
    specs = [spec for spec in index.sweep.cells if index.states[file_name(spec)] == "complete"]
    if specs:
        shown = specs[:ROWS_SHOWN]
        metas = [read_meta(index.folder / file_name(spec)) for spec in shown]
        progress.screen.raw("")
        named = list(zip(labels_of(shown), [meta["summary"] for meta in metas], strict=True))
        for number, line in enumerate(table(named)):
            progress.screen.raw(line, bold=not number)
        if len(specs) > ROWS_SHOWN:
            progress.screen.say(f"and {len(specs) - ROWS_SHOWN} more")
    for name in failed:
        progress.screen.say(f"failed: {name}: {index.errors[name]}")
    progress.screen.raw(f"results: {index.folder}")
    return int(bool(failed))


def _live(args: argparse.Namespace, sweep: Sweep, index: Index) -> int:
    """Repeats of all configurations of an engine, interleaved in a random order; engines one after the other."""
    import uvloop

    from proxy.descriptors import raise_limit

    raise_limit()
    todo = index.missing()
    progress = _begun(index, todo)
    if not todo:
        return _tell(index, progress)
    index.write("partial")
    by_engine: dict[str, list[Spec]] = {}
    for spec in todo:
        by_engine.setdefault(spec.engine, []).append(spec)
    for specs in by_engine.values():
        if not uvloop.run(_engine(specs, args, index)):
            return _broken_off(index, progress)
    return _tell(index, progress)


async def _engine(specs: list[Spec], args: argparse.Namespace, index: Index) -> bool:
    """False: told to stop."""
    import asyncio
    import secrets
    import signal

    import aiohttp

    from bench.load.live import one, prepare

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    async with aiohttp.ClientSession() as session:
        arm, keepers = await prepare(session, specs, args, stop, resume=True)
        plays = [(keeper, repeat) for keeper in keepers for repeat in keeper.missing]
        rng = random.Random(f"order {specs[0].seed}")
        plays.sort(key=lambda play: (play[1], rng.random()))
        progress = Progress(max(1, len(plays)))
        command = secrets.token_hex(3)
        for number, (keeper, repeat) in enumerate(plays):
            if not await one(arm, keeper, repeat, f"{command} {number}", progress):
                _mark(keepers)
                return False
            if not keeper.missing:
                index.states[keeper.path.name] = "complete"
                index.write("partial")
    return True


def _mark(keepers: list[Keeper]) -> None:
    for keeper in keepers:
        if keeper.missing and keeper.path.exists():
            keeper.interrupted()
