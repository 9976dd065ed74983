"""`joulegate twin`: read the options, serve until told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from backends.twin.calibration import CalibrationError
from backends.twin.choose import Choice, choose, with_batch
from backends.twin.engine import TwinEngine
from backends.twin.server.app import application
from backends.twin.server.metrics import Metrics, Observed
from backends.twin.server.runtime import Runtime
from backends.twin.server.service import Service
from backends.twin.server.tokenizer import tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.twin.calibration import Calibration
    from backends.twin.waiting import SchedulingPolicy

IDLE_SECONDS = 5.0
"""A connection that is idle for so long is closed, as uvicorn does under vLLM."""
LEAVE_SECONDS = 0.25
"""How long calls under way may take to end when the server is told to stop."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    twin: Choice
    host: str = "127.0.0.1"
    port: int = 8000
    speed: float = 1.0
    model_name: str | None = None
    max_model_len: int | None = None
    scheduling_policy: SchedulingPolicy = "priority"
    max_num_queued_reqs: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    sleep_mode: bool = False
    wake_seconds: float = 0.0


class OptionError(Exception):
    """An option that cannot be used; the message names it."""


def calibration_of(options: Options) -> Calibration:
    """The calibration, with what the options change of it. OptionError."""
    try:
        found = with_batch(choose(options.twin), options.max_num_seqs, options.max_num_batched_tokens)
    except CalibrationError as error:
        raise OptionError(str(error)) from None
    longest = min(found.model.max_model_len, found.engine.kv_cache_tokens)
    length = options.max_model_len
    if length is not None and length > longest:
        raise OptionError(
            f"--max-model-len: {length} is more than {longest} tokens, which the model and its KV cache allow"
        )
    model = found.model.model_copy(update={"max_model_len": length or longest})
    return found.model_copy(update={"model": model})


def run(options: Options) -> int:
    """Serve. 0 when told to stop, 1 if the port cannot be had. OptionError."""
    import uvloop

    calibration = calibration_of(options)
    try:
        return uvloop.run(_serve(options, calibration))
    except OSError as error:
        print(f"joulegate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


async def _serve(options: Options, calibration: Calibration) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(options, calibration):
        await stop.wait()
    return 0


@asynccontextmanager
async def serving(options: Options, calibration: Calibration) -> AsyncIterator[None]:
    """Serve on the running loop until the context ends. OSError if the port cannot be had."""
    observed = Observed(calibration.model.max_model_len)
    runtime = Runtime(TwinEngine(calibration, policy=options.scheduling_policy), observed, options.speed)
    name = options.model_name or calibration.model.id
    words = tokenizer(calibration.model.vocabulary)
    service = Service(
        runtime, words, observed, name, options.max_num_queued_reqs, options.sleep_mode, options.wake_seconds
    )
    app = application(service, Metrics(runtime, observed, name))
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=LEAVE_SECONDS
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port)
        await site.start()
        _say(options, calibration, name, runner.addresses[0][1])
        yield
    finally:
        await runner.cleanup()
        runtime.close()


def _say(options: Options, calibration: Calibration, name: str, port: int) -> None:
    if options.twin.card is not None:
        unsure = calibration.uncertainty
        errors = f"expect errors of {unsure.time:.0%} in time and {unsure.energy:.0%} in energy"
        print(f"joulegate twin: {calibration.source}; {errors}", file=sys.stderr)
    print(
        f"joulegate twin: http://{options.host}:{port} simulates vLLM with {name} on {calibration.card.gpus} ×"
        f" {calibration.card.name} at {options.speed:g} × real time; its answers, times and joules are simulated",
        file=sys.stderr,
        flush=True,
    )
