"""Probes of a real engine: bursts to it while idle and while it decodes, and trains of short prompts."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from itertools import count
from typing import TYPE_CHECKING, Any

from bench.twin.burst import WATCHED_EVENTS, Burst, figures
from bench.twin.wire import Heard, ids_of
from workloads.shapes import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.twin.wire import Wire

SIZES = (1, 2, 4, 8, 16, 32, 64)
BESIDE = [
    Burst(1, 1024, cached=True),
    *(Burst(1, tokens) for tokens in (64, 256, 1024, 2048)),
    Burst(8, 256),
]
"""What is sent beside sequences that decode."""
PROBES: dict[str, list[Burst]] = {
    "ladder": [Burst(1, tokens) for tokens in (64, 256, 512, 1024, 2048, 4096, 8192, 16384)] * 3,
    "cached": [Burst(1, tokens, cached=True) for tokens in (1024, 4096, 16384)] * 3,
    "bursts": [Burst(n, tokens) for tokens in (256, 1024, 2048) for n in SIZES],
    "shared": [Burst(n, 2048, shared_tokens=1024) for n in SIZES],
    "beside": [
        burst._replace(background=background, idle_s=0.3)
        for background in (1, 8, 32, 64)
        for _ in range(3)
        for burst in BESIDE
    ],
}
"""Name → what is sent, one after the other; those with the same background share it."""
TRAINS = ((16, 1, 60), (64, 1, 60), (256, 1, 60), (1024, 1, 40), (256, 4, 120), (1024, 4, 60))
"""Prompts of so many tokens from so many clients, so many: rows of kind `prefill`."""
TRAIN = "train"
BACKGROUND_OUTPUT_TOKENS = 20_000
_command = secrets.token_hex(3)
_number = count()


def names() -> list[str]:
    """All probes."""
    return [*PROBES, TRAIN]


async def play(name: str, wire: Wire, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure a probe; each row is told as soon as it is there. KeyError for an unknown one."""
    if name == TRAIN:
        for tokens, clients, calls in TRAINS:
            tell(await _train(wire, tokens, clients, calls))
        return
    bursts = PROBES[name]
    for background in dict.fromkeys((burst.background, burst.background_tokens) for burst in bursts):
        alike = [burst for burst in bursts if (burst.background, burst.background_tokens) == background]
        async with _Background(wire, *background) as behind:
            for burst in alike:
                tell(await _burst(wire, burst, behind))


class _Background:
    """Sequences that decode until they are left."""

    def __init__(self, wire: Wire, sequences: int, prompt_tokens: int) -> None:
        self._wire = wire
        self._prompts = [_fresh(prompt_tokens) for _ in range(sequences)]
        self._tasks: list[asyncio.Task[None]] = []
        self.watched: Heard | None = None

    async def __aenter__(self) -> _Background:
        """The last is streamed and watched: its first token comes behind those of all others."""
        for prompt in self._prompts:
            ids_of(prompt)
        for prompt in self._prompts[:-1]:
            self._tasks.append(self._wire.start([prompt], BACKGROUND_OUTPUT_TOKENS, lambda _: None))
        if self._prompts:
            await asyncio.sleep(0.2)
            watched = self.watched = Heard()
            self._tasks.append(
                self._wire.start(
                    [self._prompts[-1]], BACKGROUND_OUTPUT_TOKENS, lambda _: None, stream=True, heard=watched
                )
            )
            await watched.first.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _burst(wire: Wire, burst: Burst, background: _Background) -> dict[str, Any]:
    shared = [_fresh(burst.shared_tokens)] if burst.shared_tokens else []
    prompts = [[*shared, _fresh(burst.prompt_tokens - burst.shared_tokens)] for _ in range(burst.n)]
    for prompt in prompts:
        for part in prompt:
            ids_of(part)
    if burst.cached:
        await asyncio.gather(*(wire.ask(prompt, 1) for prompt in prompts))
    await asyncio.sleep(burst.idle_s)
    heards = [Heard() for _ in prompts]
    watched = background.watched or heards[0]
    behind = len(watched.events)
    start = wire.loop.time()
    tasks = [
        wire.start(prompt, burst.output_tokens, lambda _: None, stream=True, heard=heard)
        for prompt, heard in zip(prompts, heards, strict=True)
    ]
    await asyncio.gather(*tasks)
    if background.watched is not None:
        await asyncio.sleep(0.05)  # some more steps of the others
    return {"kind": "burst", **burst._asdict(), **_seen(burst, start, heards, watched, behind)}


def _seen(burst: Burst, start: float, heards: list[Heard], watched: Heard, behind: int) -> dict[str, Any]:
    def since(at: float | None) -> float:
        return round((at or start) - start, 5)

    firsts = [since(heard.events[0]) for heard in heards if heard.events]
    ends = [since(heard.ended_at) for heard in heards]
    last = max(firsts, default=0.0)
    events = [since(at) for at in watched.events[max(0, behind - WATCHED_EVENTS) :]]
    shown = sum(1 for at in events if at <= last) + WATCHED_EVENTS
    return {
        "background_generated": behind if burst.background else 0,
        "cached_tokens": heards[0].cached_tokens,
        **({name: round(value, 5) for name, value in figures(burst, firsts, ends, events).items()} if firsts else {}),
        "written_s": [since(heard.written_at) for heard in heards],
        "ttft_s": firsts,
        "end_s": ends,
        "events_s": events[:shown],
    }


async def _train(wire: Wire, tokens: int, clients: int, calls: int) -> dict[str, Any]:
    """Too short for the energy counter, which moves ten times a second."""
    prompts = [_fresh(tokens) for _ in range(calls)]
    for prompt in prompts:
        ids_of(prompt)
    left = iter(prompts)

    async def client() -> None:
        for prompt in left:
            await wire.ask([prompt], 1)

    await asyncio.sleep(1.0)
    start = wire.loop.time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = wire.loop.time() - start
    return {
        "kind": "prefill",
        "tokens": tokens,
        "conc": clients,
        "n": calls,
        "tok_s": round(calls * tokens / seconds, 1),
        "ms_per_req": round(1e3 * seconds / calls, 3),
    }


def _fresh(tokens: int) -> Part:
    """A prompt that the engine has not seen."""
    return Part(f"probe {_command} {next(_number)}", tokens)
