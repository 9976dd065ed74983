"""`joulegate-bench twin-live`: workflows on a real engine beside its card's energy counter, as rows for twin-check.

Reads NVML and changes nothing of the card.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from backends.twin import calibration as calibrations
from backends.twin.calibration import CalibrationError
from bench.programs import BenchError
from bench.twin.crowd import Crowd, Rule, Run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from backends.twin.calibration import Calibration
    from workloads.shapes import Part

WARM_CALLS = 64
SETTLE_SECONDS = 3.0
TOKEN_IDS = (10, 120_000)
TIMEOUT_SECONDS = 300.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `twin-live`."""
    parser.add_argument("runs", nargs="+", metavar="WORKLOAD:RATE[:SLACK]", help="as chain:4 or composite:4:3")
    parser.add_argument("--engine", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX", help="NVML's index of its card (default: 0)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, each run (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibration", default="h200-llama-3.1-8b", help="whose times the holding rule believes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="written after each run")


def run(args: argparse.Namespace) -> int:
    """Play the runs one after the other. BenchError if the engine or the card cannot be reached."""
    try:
        calibration = calibrations.load(args.calibration)
        runs = [_run_of(text, args) for text in args.runs]
    except (CalibrationError, ValueError) as error:
        raise BenchError(str(error)) from None
    asyncio.run(_play_all(args, runs, calibration))
    return 0


def _run_of(text: str, args: argparse.Namespace) -> Run:
    workload, _, rest = text.partition(":")
    rate, _, slack = rest.partition(":")
    try:
        rule = Rule(float(slack)) if slack else Rule()
        return Run(workload, float(rate), args.seconds, args.seed, rule)
    except ValueError:
        raise ValueError(f"runs: {text!r} is not like chain:4 or chain:4:3") from None


class _Counter:
    """NVML's total-energy counter of one card, read off the event loop because a read takes milliseconds."""

    def __init__(self, index: int) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            raise BenchError(f"--gpu {index}: NVML says {error}") from None
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self.card = {
            "name": pynvml.nvmlDeviceGetName(self._handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "enforced_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3,
        }

    async def joules(self) -> float:
        return float(await asyncio.to_thread(self._read, self._handle)) / 1e3


class _Engine:
    """The stage that is real: the event loop's clock, and an engine behind HTTP."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []

    @property
    def now(self) -> float:
        return self._loop.time()

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._loop.call_at(time, action)

    def send(self, prompt: tuple[Part, ...], output_tokens: int, done: Callable[[], None]) -> None:
        ids = [token for part in prompt for token in _tokens(part)]
        task = self._loop.create_task(self._call(ids, output_tokens, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, ids: list[int], output_tokens: int, done: Callable[[], None]) -> None:
        body = {"model": self._model, "prompt": ids, "max_tokens": output_tokens, "ignore_eos": True, "temperature": 0}
        for attempt in (1, 2):  # the engine may close a kept connection just as it is used
            try:
                async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
                    text = await answer.text()
                if answer.status != 200:
                    self.failed.append(f"{answer.status}: {text[:200]}")
                break
            except aiohttp.ClientError as error:
                if attempt == 2:
                    self.failed.append(repr(error))
        done()


@lru_cache(maxsize=64)
def _tokens(part: Part) -> list[int]:
    """The same text, the same tokens."""
    rng = random.Random(part.text)
    return [rng.randrange(*TOKEN_IDS) for _ in range(part.tokens)]


async def _play_all(args: argparse.Namespace, runs: list[Run], calibration: Calibration) -> None:
    counter = _Counter(args.gpu)
    rows: list[dict[str, Any]] = []
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        try:
            async with session.get(f"{args.engine}/v1/models") as answer:
                model = (await answer.json())["data"][0]["id"]
        except (aiohttp.ClientError, KeyError, IndexError) as error:
            raise BenchError(f"--engine {args.engine}: no model to be had: {error!r}") from None
        engine = _Engine(session, args.engine, model)
        await asyncio.gather(*(engine._call([20 + number] * 64, 64, lambda: None) for number in range(WARM_CALLS)))
        for each in runs:
            await asyncio.sleep(SETTLE_SECONDS)
            row = await _play(each, engine, counter, calibration)
            if engine.failed:
                raise BenchError(f"{len(engine.failed)} calls failed, as: {engine.failed[0]}")
            rows.append(row)
            print(json.dumps(row), flush=True)
            document = {"static": {**counter.card, "measured_unix_seconds": time.time()}, "rows": rows}
            args.out.write_text(json.dumps(document), encoding="utf-8")


async def _play(run: Run, engine: _Engine, counter: _Counter, calibration: Calibration) -> dict[str, Any]:
    before = await counter.joules()
    done = asyncio.Event()
    crowd = Crowd(engine, run, calibration, done.set)
    await done.wait()
    until = engine.now
    return crowd.summary(await counter.joules() - before, until)
