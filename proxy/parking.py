"""Carries out parking: asks engines whether they sleep, puts them to sleep, wakes them; says it to operators."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.vllm import sleeping
from scheduler.actions import Park
from scheduler.parking_events import EngineAsleep, EngineParked, EngineWoken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from proxy.config import Config
    from proxy.engines import Engine
    from proxy.gateway import Gateway
    from scheduler.actions import Wake

_log = logging.getLogger("joulegate")


class ParkingShell:
    """One gateway's."""

    def __init__(self, gateway: Gateway, config: Config) -> None:
        self._gateway = gateway
        self.config = config
        self._moves: dict[str, asyncio.Task[None]] = {}
        """By engine: what is under way."""
        self._moved: dict[str, int] = {}
        """By engine: how often it was moved. An answer from before the last move says nothing of now."""
        self._unable: dict[str, str] = {}
        """Engines that cannot be parked, and why: said once."""
        gateway.park = self.carry_out

    # --- what engines say ---

    async def probe(self, engine: Engine) -> None:
        """Ask an engine that may be parked whether it sleeps, and tell the scheduler what is news to it."""
        name = engine.name
        sleeper = self._gateway.scheduler.parking.sleepers.get(name)
        if sleeper is None or name in self._moves:
            return
        before = self._moved.get(name, 0)
        said = await sleeping.is_sleeping(*_where(engine), self.config.health.probe_timeout_seconds)
        if name in self._moves or self._moved.get(name, 0) != before or self._gateway.engines.get(name) is not engine:
            return
        known = {"asleep": True, "awake": False}.get(sleeper.state)
        if said.asleep is None:
            if sleeper.state != "unable" and (not said.able or sleeper.state == "unknown"):
                self._tell(EngineAsleep(name, None, said.able, said.detail))
            self._say_unable(name, said.detail if not said.able else "")
            return
        self._unable.pop(name, None)
        if said.asleep is not known:
            self._gateway.log.event("engine_found", engine=name, asleep=said.asleep)
            self._tell(EngineAsleep(name, said.asleep))

    def _say_unable(self, engine: str, detail: str) -> None:
        """Loudly, and once: who asked for parking must know that there is none."""
        if detail and self._unable.get(engine) != detail:
            self._unable[engine] = detail
            self._gateway.log.event("parking_unable", engine=engine, detail=detail)
            _log.error("the engine %s has park = true and cannot be parked: %s", engine, detail)

    # --- what is done ---

    def carry_out(self, action: Park | Wake) -> None:
        """Begin to; what comes of it follows as an event."""
        name = action.engine
        task = asyncio.get_running_loop().create_task(self._carry_out(action))
        self._moves[name] = task

    async def _carry_out(self, action: Park | Wake) -> None:
        name, parks, started = action.engine, isinstance(action, Park), monotonic()
        engine = self._gateway.engines.get(name)
        detail = "it is not configured any more"
        if engine is not None:
            try:
                detail = await self._move(engine, parks=parks)
            except Exception as error:  # noqa: BLE001  (reported; the mind must know that nothing came of it)
                self._gateway.faults.report("parking", error, engine=name)
                detail = repr(error)
        self._moves.pop(name, None)
        seconds = monotonic() - started
        why = "nothing to do" if isinstance(action, Park) else action.why
        self._gateway.log.event(
            "engine_parked" if parks else "engine_woken",
            engine=name,
            why=why,
            done=not detail,
            seconds=round(seconds, 3),
            detail=detail,
        )
        self._tell((EngineParked if parks else EngineWoken)(name, not detail, seconds, detail))

    async def _move(self, engine: Engine, *, parks: bool) -> str:
        self._moved[engine.name] = self._moved.get(engine.name, 0) + 1
        move = sleeping.sleep if parks else sleeping.wake_up
        try:
            return await move(*_where(engine), self.config.parking.timeout_seconds)
        finally:
            self._moved[engine.name] += 1

    def _tell(self, event: EngineAsleep | EngineParked | EngineWoken) -> None:
        if event.engine in self._gateway.engines:
            self._gateway.tell(event)

    # --- the end ---

    async def close(self) -> None:
        """Wake whoever sleeps, and whoever may since it was moved and has not said, unless they are to be left so."""
        if self._moves:
            await asyncio.wait(list(self._moves.values()))
        sleepers = self._gateway.scheduler.parking.sleepers
        asleep = [
            self._gateway.engines[name]
            for name, each in sleepers.items()
            if each.state == "asleep" or (each.state == "unknown" and self._moved.get(name))
        ]
        await asyncio.gather(*map(self.let_go, asleep))

    async def let_go(self, engine: Engine) -> None:
        """Wake an engine that nobody here will wake again."""
        if self.config.parking.at_exit == "leave":
            self._gateway.log.event("engine_left_asleep", engine=engine.name)
            return
        detail = await self._move(engine, parks=False)
        self._gateway.log.event("engine_woken", engine=engine.name, why="exit", done=not detail, detail=detail)
        if detail:
            _log.error("the engine %s sleeps and could not be woken: %s", engine.name, detail)

    def leaves(self, engine: Engine) -> None:
        """It is taken out of the configuration (or is another server now). Before the scheduler hears of that."""
        sleeper = self._gateway.scheduler.parking.sleepers.get(engine.name)
        self._unable.pop(engine.name, None)
        if sleeper is not None and sleeper.state in ("asleep", "parking"):
            before = self._moves.get(engine.name)
            self._moves[f"{engine.name} (leaving)"] = task = asyncio.get_running_loop().create_task(
                self._after(before, engine)
            )
            task.add_done_callback(lambda _: self._moves.pop(f"{engine.name} (leaving)", None))

    async def _after(self, before: asyncio.Task[None] | None, engine: Engine) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self.let_go(engine)

    # --- for operators ---

    def notes(self) -> list[str]:
        """What /ready says although calls may come."""
        found = []
        for name, sleeper in self._gateway.scheduler.parking.sleepers.items():
            if sleeper.engine.unwakeable:
                found.append(f"engine {name} sleeps and could not be woken: {sleeper.engine.unwakeable}")
            elif sleeper.state == "unable":
                found.append(f"engine {name} cannot be parked: {sleeper.detail}")
            elif sleeper.state != "awake":
                found.append(f"engine {name} is {sleeper.state}")
        return found

    def describe(self) -> dict[str, Any]:
        """For GET /admin/engines."""
        gateway, now = self._gateway, monotonic()
        found = {}
        for name, state in gateway.scheduler.engines.items():
            engine = gateway.engines.get(name)
            load = state.load
            found[name] = {
                "url": None if engine is None else engine.config.url,
                "healthy": None if engine is None else engine.healthy,
                "detail": "" if engine is None else engine.detail,
                "breaker": state.breaker.state,
                "models": None if state.models is None else sorted(state.models),
                "in_flight": state.in_flight,
                "running": load.running if load else None,
                "waiting": load.waiting if load else None,
                "removed": state.removed,
                "parking": gateway.scheduler.parking.describe(name, now),
            }
        return {"engines": found, "parking": self.config.parking.model_dump()}


class ParkingMetrics(Collector):
    """Read off the scheduler at a scrape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        parking = self._gateway.scheduler.parking
        text = "1 while an engine that may be parked sleeps (or wakes), 0 while it is awake; absent where nobody knows"
        asleep = GaugeMetricFamily("joulegate_engine_asleep", text, labels=["engine"])
        for name, sleeper in parking.sleepers.items():
            if sleeper.state in ("asleep", "waking"):
                asleep.add_metric([name], 1)
            elif sleeper.state in ("awake", "parking"):
                asleep.add_metric([name], 0)
        yield asleep
        text = "Tries to put engines to sleep (park) and to wake them"
        moves = CounterMetricFamily("joulegate_engine_moves", text, labels=["engine", "action", "outcome"])
        for labels, count in parking.counts.items():
            moves.add_metric(labels, count)
        yield moves


def _where(engine: Engine) -> tuple[Any, str, bytes]:
    return engine.pool, engine.path_prefix.decode("ascii"), engine.own_fields
