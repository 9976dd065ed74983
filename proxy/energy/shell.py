"""Energy's part of the process: meters and priors in, the ledger, what was learned, and answers to questions out."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from proxy.budgets import JOULES_FILE_NAME, BudgetsFile, load_joules
from proxy.energy.api import EnergyDoor
from proxy.energy.capping import Capping
from proxy.energy.caps_metrics import CapsMetrics
from proxy.energy.metering import Metering
from proxy.energy.metrics import EnergyMetrics
from proxy.energy.store import FILE_NAME, EnergyStore
from scheduler.events import EnergyPrior

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config import Config
    from proxy.energy.metering import Meter
    from proxy.energy.otel import HardwareMetrics
    from proxy.engines import Engine
    from proxy.gateway import Gateway

STATE_FILE = "energy.json"
SAVED_SECONDS = 30.0
"""Between two writes of what was learned."""


class EnergyShell:
    """One gateway's."""

    def __init__(self, gateway: Gateway, config: Config) -> None:
        self._gateway = gateway
        self._config = config
        self._desk = gateway.scheduler.energy
        folder = config.state_dir if config.energy.store else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        log = gateway.log.event
        self.store = EnergyStore(None if folder is None else folder / FILE_NAME, config.energy, log)
        self.door = EnergyDoor(self.store, config.energy, self._keep)
        self.door.register(gateway.router)
        registry = gateway.metrics.registry
        registry.register(EnergyMetrics(self._desk.bill, self._desk.budgets, self.store, self._sources))
        registry.register(CapsMetrics(gateway.scheduler.caps, self._desk.source))
        self.capping = Capping(gateway, config)
        self.metering = Metering(gateway, config, self._found, self.capping)
        self._state_path = None if config.state_dir is None else config.state_dir / STATE_FILE
        self._kept = _read(self._state_path, log)
        self._priors: dict[str, str] = {}
        """Of each engine, in words where its prior is from."""
        self._saved_at = monotonic()
        self._believing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._budgets = None if config.state_dir is None else BudgetsFile(config.state_dir, JOULES_FILE_NAME)
        self._saving: asyncio.Task[None] | None = None
        if config.state_dir is not None and (restored := load_joules(config.state_dir)) is not None:
            gateway.tell(restored)
        self._hardware: HardwareMetrics | None = None
        if config.tracing.otlp_endpoint and config.tracing.metrics_seconds:
            from proxy.energy.otel import HardwareMetrics, readings_of

            self._hardware = HardwareMetrics(config.tracing, partial(readings_of, self.metering))
        self._drain_now()

    def describe(self) -> dict[str, Any]:
        """For GET /admin/energy-model: what counts an engine's joules, what is believed, how well it foretells."""
        found = {}
        for name in self._gateway.engines:
            desk, meter = self._desk.engines.get(name), self.metering.meters.get(name)
            model = desk.model if desk is not None else None
            found[name] = {
                "devices": list(meter.gpus) if meter is not None else [],
                "meter": meter.detail if meter is not None else "looking for one",
                "energy_source": self._desk.source(name),
                "prior": self._priors.get(name),
                "model": None if model is None else model.describe(),
            }
        return {"engines": found, "host": self.metering.host_detail or "not looked at"}

    def _sources(self) -> dict[str, str]:
        return {name: self._desk.source(name) for name in self._gateway.engines}

    def export(self) -> dict[str, Any]:
        """What was learned of each engine, as it is kept over a restart."""
        engines = {
            name: {"prior": desk.model.prior.name, "state": desk.model.export()}
            for name, desk in self._desk.engines.items()
            if desk.model is not None
        }
        return {"saved_unix_seconds": time.time(), "engines": engines}

    async def close(self) -> None:
        """Keep what there is."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._believing):
            task.cancel()
        if self._hardware is not None:
            await asyncio.to_thread(self._hardware.close)
        await self.metering.close()
        await self.capping.close()
        now = monotonic()
        self._desk.close(now)
        self._keep()
        if self._saving is not None:
            await self._saving
        await self._save_budgets()
        await self._save()
        await asyncio.to_thread(self.store.close)

    async def tick(self) -> None:
        """Called every few seconds."""
        await self.capping.tick()
        if monotonic() - self._saved_at >= SAVED_SECONDS:
            await self._save()

    # --- inside ---

    def _drain_now(self) -> None:
        """Into the ledger, so often that a crash costs no more than a second."""
        try:
            self._keep()
            if self._desk.budgets.by_key and (self._saving is None or self._saving.done()):
                self._saving = asyncio.get_running_loop().create_task(self._save_budgets())
        except Exception as error:  # noqa: BLE001  (reported; tried again the next time)
            self._gateway.faults.report("keeping the energy ledger", error)
        finally:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._config.energy.flush_seconds, self._drain_now)

    def _keep(self) -> None:
        changes, engines = self._desk.bill.drain()
        if changes or engines:
            self.store.add(changes, engines, time.time() - (monotonic() - self._desk.booked_until))

    async def _save_budgets(self) -> None:
        if self._budgets is None:
            return
        now = monotonic()
        try:
            await asyncio.to_thread(self._budgets.save, self._desk.budgets.budgets(now), now)
        except OSError as error:
            self._gateway.log.event("state_not_saved", detail=str(error))

    def _found(self, engine: Engine, meter: Meter, card: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._believe(engine, meter, card))
        self._believing.add(task)
        task.add_done_callback(self._believing.discard)

    async def _believe(self, engine: Engine, meter: Meter, card: str | None) -> None:
        """Give the scheduler a prior, where there is a meter to learn from or the operator names one."""
        named = engine.config.energy_prior
        if not meter.gpus and not named:
            self._priors[engine.name] = "none: nothing counts its joules, and engines.energy_prior names nothing"
            return
        from backends.twin.believe import believe
        from backends.twin.calibration import CalibrationError

        gpus = max(len(meter.gpus) * meter.cards, 1)
        try:
            prior, words = await asyncio.to_thread(believe, card, gpus, engine.models or [], named)
        except CalibrationError as error:
            self._priors[engine.name] = f"none: {error}"
            self._gateway.log.event("energy_prior_refused", engine=engine.name, detail=str(error))
            return
        except Exception as error:  # noqa: BLE001  (reported; the engine's energy stays unavailable)
            self._gateway.faults.report("an engine's energy prior", error, engine=engine.name)
            return
        self._priors[engine.name] = words
        kept = self._kept.get("engines", {}).get(engine.name)
        state = kept["state"] if kept is not None and kept.get("prior") == prior.name else None
        simulated = any(name.startswith("twin:") for name in meter.gpus)
        try:
            self._gateway.tell(EnergyPrior(engine.name, prior, state, simulated))
        except ValueError as error:  # what was kept is of another version
            self._gateway.log.event("energy_state_refused", engine=engine.name, detail=str(error))
            self._gateway.tell(EnergyPrior(engine.name, prior, None, simulated))

    async def _save(self) -> None:
        self._saved_at = monotonic()
        if self._state_path is None:
            return
        data = orjson.dumps(self.export())
        try:
            await asyncio.to_thread(_write, self._state_path, data)
        except OSError as error:
            self._gateway.log.event("state_not_saved", detail=str(error))


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _read(path: Path | None, log: Any) -> dict[str, Any]:
    """What an earlier process kept. What cannot be read is said and left: it is only a better beginning."""
    if path is None or not path.exists():
        return {}
    try:
        kept = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        log("energy_state_refused", detail=f"{path}: {error}")
        return {}
    return kept if isinstance(kept, dict) else {}
