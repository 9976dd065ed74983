"""What do the twin's meter and counters say in virtual time? Windows for the result, and the same for the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import EngineCounted, MeterRead

if TYPE_CHECKING:
    from backends.twin.engine import TwinEngine
    from backends.twin.virtual import World

READ_SECONDS = 0.5
"""As often as a gateway tells its scheduler (proxy/energy/metering.py); a window of the result is as long."""


class _Sums(NamedTuple):
    at: float
    joules: float
    busy_seconds: float
    steps: int
    generated_tokens: int
    prefilled_tokens: int


class VirtualMeter:
    """Reads from `start` to `stop`."""

    def __init__(self, world: World, engine: TwinEngine, name: str, *, told: bool = True) -> None:
        """`told`: so is a scheduler."""
        self._told = told
        self._world = world
        self._engine = engine
        self._name = name
        self._began = world.time.now
        self._last = self._sums()
        self._stopped = False
        self.windows: list[dict[str, Any]] = []
        """Rows of a result; seconds since the start."""

    def start(self) -> None:
        """From now on."""
        if self._told:
            self._tell()
        self._world.time.at(self._world.time.now + READ_SECONDS, self._again)

    def stop(self) -> None:
        """The last window ends now."""
        if not self._stopped:
            self._stopped = True
            self._window()

    def _again(self) -> None:
        if self._stopped:
            return
        self._window()
        if self._told:
            self._tell()
        self._world.time.at(self._world.time.now + READ_SECONDS, self._again)

    def _tell(self) -> None:
        """The scheduler, as a gateway would: NVML's counter moves every 100 ms."""
        engine, now = self._engine, self._world.time.now
        totals = engine.totals
        sample = MeterSample(
            now,
            Energy(engine.meter.joules_at((now // 0.1) * 0.1)),
            engine.meter.average_watts(),
            engine.limit.in_force_watts(now),
            self._throttled,
            "simulated",
        )
        self._world.tell(MeterRead(self._name, sample))
        running = float(len(engine.running))
        counters = Counters(
            now, float(totals.steps), float(totals.prompt_tokens), None, float(totals.generation_tokens), running,
            float(len(engine.requests)) - running,
        )  # fmt: skip
        self._world.tell(EngineCounted(self._name, counters))

    @property
    def _throttled(self) -> bool:
        return self._engine.sm_clock_mhz < self._engine.calibration.card.sm_clock_max_mhz

    def _sums(self) -> _Sums:
        engine = self._engine
        totals = engine.totals
        at = self._world.time.now
        return _Sums(
            at, engine.meter.joules_at(at), totals.busy_seconds, totals.steps, totals.generation_tokens,
            totals.prefill_tokens,
        )  # fmt: skip

    def _window(self) -> None:
        """The twin counts a run of steps when it is done, so single windows have some of their neighbour's."""
        last, now, engine = self._last, self._sums(), self._engine
        if now.at <= last.at:
            return
        running, joules, seconds = len(engine.running), now.joules - last.joules, now.at - last.at
        self.windows.append(
            {
                "start_s": last.at - self._began,
                "ended_s": now.at - self._began,
                "energy_source": "simulated",
                "gpu_joules": joules,
                "gpu_watts": joules / seconds,
                "limit_watts": engine.limit.in_force_watts(now.at),
                "sm_clock_mhz": engine.sm_clock_mhz,
                "throttled": self._throttled,
                "busy_s": now.busy_seconds - last.busy_seconds,
                "steps": now.steps - last.steps,
                "generated_tokens": now.generated_tokens - last.generated_tokens,
                "prefilled_tokens": now.prefilled_tokens - last.prefilled_tokens,
                "running": running,
                "waiting": len(engine.requests) - running,
                "kv_share": engine.kv_usage,
            }
        )
        self._last = now
