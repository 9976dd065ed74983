"""How is a configuration played on a real engine? Through a gateway of its own, or without one, by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.demo_children import ChildDiedError, alongside
from bench.load.cell import Keeper, Outcome, file_name, outcome_of
from bench.load.engine import Engine, look_at, look_at_gateway
from bench.load.gateway import gateway
from bench.load.load import WARM_UP, load_of
from bench.load.meters import Meters, Watch
from bench.load.playing import Playing
from bench.load.progress import Progress
from bench.load.results import SUFFIX
from bench.load.spec import AS_IS, CALLS_MAX
from bench.programs import BenchError
from workloads.player import Player
from workloads.prompts import Manner

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from bench.demo_children import Child
    from bench.load.load import Load
    from bench.load.spec import Spec
    from workloads.played import PlayedWorkflow

SETTLE_SECONDS = 1.0
TIMEOUT_SECONDS = 86_400.0
REFRESH_SECONDS = 0.5


class LiveArm:
    """One repeat of one configuration at a time."""

    def __init__(self, args: argparse.Namespace, engine: Engine, meters: Meters, stop: asyncio.Event) -> None:
        """`stop`, once set, ends what is played; it gives what there is."""
        self.engine = engine
        self._stop = stop
        self._args = args
        self._meters = meters
        self._gpus = names_of(args.gpu)

    async def play(self, spec: Spec, repeat: int, salt: str, on_news: Callable[[int, float], None]) -> Outcome | None:
        """A repeat behind its warm-up; None if it was stopped before it began. ChildDiedError."""
        load = load_of(spec, repeat)
        manner = Manner(
            words_per_token=self.engine.words_per_token,
            salt=salt,
            tag="" if spec.gateway is None else f"{salt.replace(' ', '-')}-",
            free_running=spec.free_running,
            tell_lengths=spec.tell_lengths,
            streamed=True,
        )
        async with contextlib.AsyncExitStack() as stack:
            url = self.engine.url
            children: tuple[Child, ...] = ()
            if spec.gateway is not None:
                url = spec.gateway.rstrip("/").removesuffix("/v1")
            elif spec.policy != AS_IS:
                url, child = await stack.enter_async_context(
                    gateway(spec, self.engine, self._gpus, self._args.api_key_env, self._event_log(spec, repeat))
                )
                children = (child,)
            warm = load_of(spec, WARM_UP) if spec.warm_up_seconds > 0 else None
            if warm is not None and warm.arrivals:
                await alongside(self._play(spec, warm, url, manner, lambda over, at: None), children)
            await asyncio.sleep(SETTLE_SECONDS)
            idle_watts = await self._meters.idle_watts(self._args.idle_seconds)
            if self._stop.is_set():
                return None
            return await self._measured(spec, load, repeat, url, manner, children, idle_watts, on_news)

    def _event_log(self, spec: Spec, repeat: int) -> Path | None:
        if (logs := self._args.event_logs) is None:
            return None
        logs.mkdir(parents=True, exist_ok=True)
        path: Path = logs / f"{file_name(spec).removesuffix(SUFFIX)}-{repeat}.jsonl"
        path.unlink(missing_ok=True)  # of a play that was broken off
        return path

    async def _measured(
        self, spec: Spec, load: Load, repeat: int, url: str, manner: Manner, children: tuple[Child, ...],
        idle_watts: float | None, on_news: Callable[[int, float], None],
    ) -> Outcome:  # fmt: skip
        watch = Watch(self._meters)
        async with watch:
            played, complete = await alongside(self._play(spec, load, url, manner, on_news), children)
        began = watch.began
        playing = Playing(
            [_since(began, workflow) for workflow in sorted(played, key=lambda each: each.intended_at)],
            watch.windows(), complete, idle_watts, self._meters.energy, watch.started_unix_seconds,
        )  # fmt: skip
        return outcome_of(spec, load, repeat, playing)

    async def _play(
        self, spec: Spec, load: Load, url: str, manner: Manner, on_news: Callable[[int, float], None]
    ) -> tuple[list[PlayedWorkflow], bool]:
        """(what was played, whether that is all)."""
        over: list[None] = []
        as_is = spec.policy == AS_IS
        player = Player(
            url, self.engine.model, way="bare" if as_is else spec.way,
            api_key=self.engine.api_key if as_is or spec.gateway is not None else None, manner=manner,
            concurrency=(spec.in_flight if as_is and spec.in_flight is not None else CALLS_MAX),
            timeout_seconds=TIMEOUT_SECONDS, on_call=lambda call: over.append(None),
        )  # fmt: skip
        began = monotonic()

        async def show() -> None:
            while True:
                await asyncio.sleep(REFRESH_SECONDS)
                on_news(len(over), monotonic() - began)

        playing = asyncio.create_task(
            player.play(load.arrivals, users=load.users, think_seconds=load.think_seconds)
        )  # fmt: skip
        others = asyncio.create_task(show()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((playing, *others), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                await playing
                return player.played, True
        finally:
            for task in (playing, *others):
                task.cancel()
            await asyncio.gather(playing, *others, return_exceptions=True)
        return player.played, False


def _since(began: float, played: PlayedWorkflow) -> PlayedWorkflow:
    calls = tuple(
        call._replace(
            intended_at=call.intended_at - began,
            sent_at=call.sent_at - began,
            answered_at=call.answered_at - began,
            first_token_at=None if call.first_token_at is None else call.first_token_at - began,
        )
        for call in played.calls
    )
    return played._replace(
        intended_at=played.intended_at - began, finished_at=played.finished_at - began, calls=calls
    )  # fmt: skip


def names_of(text: str | None) -> list[str]:
    """Cards with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def play_all_live(specs: list[Spec], args: argparse.Namespace) -> int:
    """Configurations on one engine, interleaved. BenchError where it cannot be played."""
    import uvloop

    from proxy.descriptors import raise_limit

    raise_limit()
    return uvloop.run(_play_all(specs, args))


async def _play_all(specs: list[Spec], args: argparse.Namespace) -> int:
    from bench.load.run import broken_off, order_of, tell

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    async with aiohttp.ClientSession() as session:
        arm, keepers = await prepare(session, specs, args, stop)
        order = order_of(specs)
        progress = Progress(len(order))
        for note in arm.engine.notes:
            progress.screen.say(f"note: {note.text} ({note.code})")
        command = secrets.token_hex(3)
        for number, (at, repeat) in enumerate(order):
            done = await one(arm, keepers[at], repeat, f"{command} {number}", progress)
            if not done:
                return broken_off(keepers, progress)
        return tell(keepers, progress)


async def prepare(
    session: aiohttp.ClientSession,
    specs: list[Spec],
    args: argparse.Namespace,
    stop: asyncio.Event,
    *,
    resume: bool = False,
) -> tuple[LiveArm, list[Keeper]]:
    """Look at the engine and its meters, and begin the results, or go on with them. BenchError."""
    from bench.load.run import isolated, meta_of, order_of

    key = None
    if args.api_key_env is not None:
        key = os.environ.get(args.api_key_env)
        if not key:
            raise BenchError(f"--api-key-env {args.api_key_env}: is not set")
    if not 0 < args.idle_seconds <= 3600:
        raise BenchError(f"--idle-seconds: must be above 0 and at most 3600, not {args.idle_seconds:g}")
    engine = await look_at(session, specs[0].engine, args.model, key)
    for url in dict.fromkeys(spec.gateway for spec in specs if spec.gateway is not None):
        await look_at_gateway(session, url, engine)
    meters = Meters(session, engine, names_of(args.gpu))
    notes = [note._asdict() for note in engine.notes]
    if meters.energy.gpu == "unavailable":
        notes.append({"code": "energy_unavailable", "text": meters.energy.detail})
        print(f"note: joules are unavailable: {meters.energy.detail}", flush=True)
    meta: dict[str, Any] = meta_of(args, order_of(specs), gpu=True) | {
        "time_source": "measured" if engine.twin_cards is None else "simulated",
        "isolated_source": isolated(specs[0]),
        "engine": engine.about,
        "energy": meters.energy.document(),
        "notes": notes,
    }
    return LiveArm(args, engine, meters, stop), [Keeper(spec, args.out, meta, resume=resume) for spec in specs]


async def one(
    arm: LiveArm, keeper: Keeper, repeat: int, salt: str, progress: Progress
) -> bool:  # fmt: skip
    """Play and keep one repeat; False: told to stop. BenchError if the gateway died."""
    spec = keeper.spec
    load = load_of(spec, repeat)
    progress.next(f"{spec.policy}, repeat {repeat}")

    def news(over: int, seconds: float) -> None:
        share = over / load.calls
        if load.arrival_seconds is not None:
            share = max(share, min(0.99, seconds / load.arrival_seconds))
        progress.at(share, f"{over} of {load.calls} calls")

    try:
        outcome = await arm.play(spec, repeat, salt, news)
    except (ChildDiedError, aiohttp.ClientError) as error:
        keeper.interrupted(f"{error}")
        raise BenchError(f"{error}; what was done before is kept and marked: {keeper.path}") from None
    if outcome is None:
        return False
    keeper.add(outcome)
    progress.done(f"{len(outcome.rows['call'])} calls")
    return outcome.complete


__all__ = ["LiveArm", "play_all_live"]
