"""Carries out what is decided of GPUs' limits, off the event loop, and tells the scheduler what came of it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from backends.power.actuator import Actuator, new_holder
from backends.power.device import ENFORCED_UNTOLD
from backends.power.lease import LeaseFault, default_folder
from backends.power.opening import UnknownGpu, open_device
from scheduler.actions import SetCap
from scheduler.energy.caps import CardLimits
from scheduler.events import CapApplied, CapResumed, CardsRead

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.power.cap import Outcome
    from backends.power.device import PowerDevice
    from backends.power.sample import Sample
    from proxy.config import Config
    from proxy.energy.metering import Meter
    from proxy.gateway import Gateway
    from scheduler.actions import SetClock
    from scheduler.energy.caps.desk import CapsDesk

SETTLE_SECONDS = 1.0
"""Until a new limit is in force: 0.1 to 0.6 s were measured on cards that were seen."""


LEAST_MHZ = 210.0
"""A card may idle at its lowest SM clock: a lock is meant as an upper bound. Drivers take no lower bound of nothing."""


class CapsFault(OSError):
    """Limits cannot be set in this place; the message says why and the way out."""


class Capping:
    """One gateway's. In mode `observe` nothing is ever opened for writing."""

    def __init__(self, gateway: Gateway, config: Config) -> None:
        self._gateway = gateway
        self._config = config
        self._desk: CapsDesk = gateway.scheduler.caps
        self._actuator: Actuator | None = None
        self._holder = new_holder()
        self._meters: dict[str, Meter] = {}
        self._told: dict[str, CardsRead] = {}
        self._devices: list[PowerDevice] = []
        self._set: dict[str, float] = {}
        """Engine → the watts that are in force on all its cards by our doing."""
        self._untold: set[str] = set()
        """Engines of which a card does not say what limit is in force."""
        self._clock_mhz: dict[str, float] = {}
        """Engine → the highest SM clock that was seen."""
        self._logged: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        gateway.set_power = self.carry_out

    # --- from start to end ---

    async def start(self) -> None:
        """Restore what earlier processes have left (in `observe`, only say it). CapsFault if leases cannot be kept."""
        power = self._config.power
        try:
            folder: Path = power.lease_dir or default_folder()
        except LeaseFault as fault:
            if power.mode == "actuate":
                raise CapsFault(str(fault)) from None
            return
        redis_url = "" if power.redis_url is None else power.redis_url.get_secret_value()
        actuator = Actuator(
            {}, power.mode, folder, self._say, watchdog=power.watchdog, redis_url=redis_url, holder=self._holder
        )
        try:
            await actuator.start()
        except LeaseFault as fault:
            raise CapsFault(str(fault)) from None
        self._actuator = actuator
        for meter in list(self._meters.values()):
            await self._open(meter)

    async def close(self) -> None:
        """Put every limit back. May be called twice."""
        self._closing = True
        if (actuator := self._actuator) is None:
            return
        self._actuator = None
        if self._tasks:
            await asyncio.wait(self._tasks)
        await actuator.close()
        for device in self._devices:
            await asyncio.to_thread(device.close)

    async def tick(self) -> None:
        """Called every few seconds: log what was decided, and let go of cards that are not ours to move any more."""
        for decision in self._desk.fresh(self._logged):
            told = decision.describe()
            told["decided_at"] = told.pop("at")
            self._gateway.log.event("cap_decision", mode=self._desk.mode_of(decision.engine), **told)
        for name in [name for name in self._meters if name not in self._gateway.engines]:
            await self._let_go(name, self._meters.pop(name).gpus)
            self._told.pop(name, None)
        for name, meter in self._meters.items():
            controller = self._desk.fleet.controllers.get(name)
            if controller is not None and controller.standing.given_up:
                await self._let_go(name, meter.gpus)

    async def _let_go(self, engine: str, labels: Sequence[str]) -> None:
        """What of these cards is ours goes back; what somebody else has set since is left."""
        self._set.pop(engine, None)
        if self._actuator is not None:
            held = self._actuator.state()
            for label in labels:
                if label in held and held[label]["token"] is not None:
                    done = await self._actuator.restore(label)
                    if done is not None:
                        self._say(f"{label}: {done.state.replace('_', ' ')}: {done.detail}")

    # --- what is read ---

    async def meter_found(self, meter: Meter) -> None:
        """An engine's devices are known (again)."""
        before = self._meters.get(meter.engine)
        if before is not None and before.gpus != meter.gpus:
            await self._let_go(meter.engine, before.gpus)
        self._meters[meter.engine] = meter
        self._told.pop(meter.engine, None)
        await self._open(meter)

    async def _open(self, meter: Meter) -> None:
        """Of its own for setting: the one that is read may be in the middle of a request."""
        if self._actuator is None or self._config.power.mode != "actuate" or not self._named(meter):
            return
        where = self._config.power.where(self._holder)
        for label in meter.gpus:
            try:
                device: PowerDevice = await asyncio.to_thread(open_device, label, where)
            except UnknownGpu as error:
                self._say(str(error))
                return
            self._devices.append(device)
            self._actuator.add(label, device)

    def _named(self, meter: Meter) -> bool:
        """A GPU that nobody has named is never touched. A simulated card is its engine's."""
        engine = self._gateway.engines.get(meter.engine)
        named = engine is not None and bool(engine.config.gpus)
        return bool(meter.gpus) and (named or all(name.startswith("twin:") for name in meter.gpus))

    def seen(self, sample: Sample) -> None:
        """Each reading of each device: has somebody else moved its limit?"""
        if self._actuator is not None:
            self._actuator.see(sample)

    def read(self, meter: Meter, devices: Sequence[PowerDevice], samples: Sequence[Sample]) -> None:
        """An engine's devices were read, all of them. The scheduler is told of limits when they are others."""
        clocks = [sample.sm_clock_mhz for sample in samples if sample.sm_clock_mhz is not None]
        highest = max([*clocks, self._clock_mhz.get(meter.engine, 0.0)])
        self._clock_mhz[meter.engine] = highest
        if self._config.caps.actuator == "clock":
            able = all(device.can_lock_clocks for device in devices)
        else:
            able = all(device.can_set_limit for device in devices)
        told = [sample.limits for sample in samples if sample.limits is not None]
        if any(limits.enforced_watts is None for limits in told):
            self._untold.add(meter.engine)
        else:
            self._untold.discard(meter.engine)
        event = CardsRead(
            meter.engine,
            len(meter.gpus) * meter.cards,
            _strictest(samples),
            min(sample.at_seconds for sample in samples),
            able and self._named(meter),
            SETTLE_SECONDS,
            highest or None,
        )
        before = self._told.get(meter.engine)
        if before is None or before._replace(at=event.at) != event:
            self._told[meter.engine] = event
            self._gateway.tell(event)

        self._say_yielded(meter)

    def _say_yielded(self, meter: Meter) -> None:
        """Where somebody has moved one card of several, the strictest limit of all may still be ours."""
        controller = self._desk.fleet.controllers.get(meter.engine)
        if self._actuator is None or controller is None or controller.standing.given_up:
            return
        held = self._actuator.state()
        for label in meter.gpus:
            if label in held and (detail := held[label]["yielded"]):
                answer = CapApplied(meter.engine, None, None, None, monotonic(), "other", f"{label}: {detail}")
                self._gateway.log.event("cap_set", reason="", **answer._asdict())
                self._gateway.tell(answer)
                return

    # --- what is set ---

    def carry_out(self, action: SetCap | SetClock) -> None:
        """Begin to; what comes of it follows as an event."""
        task = asyncio.get_running_loop().create_task(self._carry_out(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, action: SetCap | SetClock) -> None:
        meter, actuator = self._meters.get(action.engine), self._actuator
        if meter is None or actuator is None or self._closing:
            answer = self._failed(action, "limits are not set (any more) by this process")
        else:
            try:
                answer = await self._move(action, meter.gpus, actuator)
            except Exception as error:  # noqa: BLE001  (reported; the mind must know that nothing came of it)
                self._gateway.faults.report("setting a limit", error, engine=action.engine)
                answer = self._failed(action, repr(error))
        self._gateway.log.event("cap_set", reason=action.reason, **answer._asdict())
        self._gateway.tell(answer)

    async def _move(self, action: SetCap | SetClock, labels: Sequence[str], actuator: Actuator) -> CapApplied:
        held = actuator.state()
        for label in labels:
            if label in held and held[label]["yielded"]:
                actuator.resume(label)  # the controller would not ask if it had not been told that it may
        if isinstance(action, SetCap):
            outcomes = await actuator.set_together(labels, action.watts)
        else:
            bounds = None if action.highest_mhz is None else (min(LEAST_MHZ, action.highest_mhz), action.highest_mhz)
            outcomes = list(await asyncio.gather(*(actuator.lock_sm_clock_mhz(label, bounds) for label in labels)))
        bad = next((one for one in outcomes if one.state != "applied"), None)
        if bad is not None:
            await self._undo(action.engine, outcomes, actuator)
            if bad.state == "yielded":
                return CapApplied(
                    action.engine, action.watts, None, bad.applied_watts, monotonic(), "other", bad.detail
                )
            return self._failed(action, f"{bad.device}: {bad.state.replace('_', ' ')}: {bad.detail}")
        if not isinstance(action, SetCap):
            return CapApplied(action.engine, action.watts, action.watts, action.watts, monotonic())
        clamped = [one.clamped_watts for one in outcomes if one.clamped_watts is not None]
        applied = min(one.applied_watts for one in outcomes if one.applied_watts is not None)
        self._set[action.engine] = applied
        said = "; ".join(one.detail for one in outcomes if one.detail)
        return CapApplied(action.engine, action.watts, min(clamped), applied, monotonic(), detail=said)

    async def _undo(self, engine: str, outcomes: Sequence[Outcome], actuator: Actuator) -> None:
        """Cards that share a model's layers work in step: where one cannot be moved, none is."""
        moved = [one.device for one in outcomes if one.state == "applied"]
        before = self._set.get(engine)
        if before is None:
            await asyncio.gather(*map(actuator.restore, moved))
        else:
            await actuator.set_together(moved, before)

    @staticmethod
    def _failed(action: SetCap | SetClock, detail: str) -> CapApplied:
        return CapApplied(action.engine, action.watts, None, None, monotonic(), detail=detail)

    # --- the operator ---

    def resume(self, engine: str) -> bool:
        """We may set the limits of this engine's cards again. False: there is no such engine."""
        if engine not in self._meters:
            return False
        if self._actuator is not None:
            held = self._actuator.state()
            for label in self._meters[engine].gpus:
                if label in held:
                    self._actuator.resume(label)
        self._gateway.tell(CapResumed(engine))
        return True

    def describe(self) -> dict[str, Any]:
        """For GET /admin/caps."""
        held = {} if self._actuator is None else self._actuator.state()
        found = {}
        for name in self._gateway.engines:
            meter = self._meters.get(name)
            labels = () if meter is None else meter.gpus
            told = self._desk.describe(name)
            if not labels:
                told["why"] = meter.detail if meter is not None else "looking for its GPUs"
            elif name in self._untold:
                told["why"] = ENFORCED_UNTOLD
            source = self._gateway.scheduler.energy.source(name)
            found[name] = {**told, "energy_source": source, "devices": {label: held.get(label) for label in labels}}
        return {
            "mode": self._desk.rules.mode,
            "now": monotonic(),
            "budget_watts": self._desk.rules.budget_watts,
            "engines": found,
        }

    def _say(self, text: str) -> None:
        self._gateway.log.event("power", detail=text)


def _strictest(samples: Sequence[Sample]) -> CardLimits | None:
    """Of cards whose limits move together. None: one does not say all of them (zeusd alone knows none in force)."""
    every = [sample.limits for sample in samples if sample.limits is not None]
    enforced = [limits.enforced_watts for limits in every if limits.enforced_watts is not None]
    default = [limits.default_watts for limits in every if limits.default_watts is not None]
    if not samples or not len(samples) == len(enforced) == len(default):
        return None
    return CardLimits(
        min(limits.requested_watts for limits in every),
        min(enforced),
        min(default),
        max(limits.lowest_watts for limits in every),
        min(limits.highest_watts for limits in every),
    )
