"""One gateway process from start to end: build the parts, serve, reload on SIGHUP, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from proxy import budgets
from proxy.ab.metrics import ExperimentMetrics
from proxy.ab.shell import Experiments
from proxy.calllog import CallLog
from proxy.config import listen_problems
from proxy.config_file import NEEDS_RESTART, ConfigError, diff
from proxy.control import Desks, start_control
from proxy.energy.shell import EnergyShell
from proxy.energy.telling import Joules
from proxy.engines import Engine, EngineWatch
from proxy.gateway import Gateway
from proxy.metrics import GaugeSnapshot, Metrics
from proxy.own.api import OwnApi
from proxy.parking import ParkingMetrics, ParkingShell
from proxy.policies import PolicyDesk, PolicyMetrics
from proxy.scheduler_config import joule_quotas, quotas, scheduler_config
from proxy.workflow_metrics import WorkflowMetrics
from scheduler.core import Scheduler
from scheduler.events import (
    BreakersChanged,
    EnginesChanged,
    JouleQuotasChanged,
    LimitsChanged,
    QuotasChanged,
    Tick,
)
from scheduler.snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

    from backends.vllm.process import VllmProcess
    from proxy.config import Config, EngineConfig

HOUSEKEEPING_SECONDS = 5.0
GC_THRESHOLD = 10_000
"""Calls make no reference cycles: the collector need not look as often as by default (700)."""


class App:
    """The process. `reload` reads the configuration again (None: there is no file to read)."""

    def __init__(
        self, config: Config, reload: Callable[[], Config] | None = None, process: VllmProcess | None = None
    ) -> None:
        self.config = config
        self._reload = reload
        self._process = process
        self._stop = asyncio.Event()
        self._listens = False
        self._hurry = asyncio.Event()
        self._exit_code = 0
        self._watches: dict[str, EngineWatch] = {}
        self._retired: list[Engine] = []
        self._budgets = budgets.BudgetsFile(config.state_dir) if config.state_dir is not None else None
        self._build()

    def _build(self) -> None:
        config = self.config
        now = monotonic()
        start = scheduler_config(config)
        scheduler = Scheduler(start, now)
        self.log = CallLog(config.log.path, buffer_bytes=config.log.buffer_bytes, prompts=config.log.prompts)
        self.metrics = Metrics(self._gauges)
        tracing = None
        if config.tracing.otlp_endpoint:
            from proxy.tracing import Tracing  # OpenTelemetry costs memory that only its users should pay

            tracing = Tracing(config.tracing, self._engine_url, Joules(scheduler.energy).estimate)
        event_log = None
        if config.event_log.path is not None:
            from proxy.eventlog import EventLogWriter

            event_log = EventLogWriter(
                config.event_log.path,
                start,
                now,
                config.event_log.max_bytes,
                lambda why: self.log.event("event_log_stopped", detail=why),
            )
        self.gateway = Gateway(config, scheduler, self.metrics, self.log, tracing, event_log)
        self.gateway.configure_watch(config.workflows)
        self.energy = EnergyShell(self.gateway, config)
        self.own = OwnApi(self.gateway, config)
        self.policies = PolicyDesk(self.gateway, config.workflows)
        self.parking = ParkingShell(self.gateway, config)
        self.metrics.registry.register(ParkingMetrics(self.gateway))
        self.metrics.registry.register(WorkflowMetrics(self.gateway, self.own))
        self.metrics.registry.register(PolicyMetrics(self.gateway))
        self.experiments = Experiments(
            self.gateway, config, lambda: self.gateway.configure_watch(self.config.workflows)
        )
        self.metrics.registry.register(ExperimentMetrics(self.gateway))
        for engine in config.engines:
            self._add_engine(engine)
        if config.state_dir is not None and (restored := budgets.load(config.state_dir)) is not None:
            self.gateway.tell(restored)

    # --- serving ---

    async def run(self, ready: Callable[[int, int], None]) -> int:
        """Serve until told to stop; returns the exit code. `ready(port, control_port)` once it listens.

        Raises OSError if a port is taken.
        """
        gateway, listen = self.gateway, self.config.listen
        loop = asyncio.get_running_loop()
        control = await start_control(
            listen.control_host,
            listen.control_port,
            public=listen.control_public,
            state=self.state,
            ready=self.ready,
            metrics=self.metrics,
            desks=Desks(self.energy, self.policies, self.experiments, self.parking),
        )
        await self.energy.capping.start()
        await self.own.start()
        self.experiments.begin()
        port = await gateway.server.listen(listen.host, listen.port)
        self._listens = True
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        background = [loop.create_task(self._housekeeping())]
        if self._process is not None:
            background.append(loop.create_task(self._watch_process(self._process)))
        # What lives from here to the end need not be walked by every collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        ready(port, control.port)
        try:
            await self._stop.wait()
            await self._drain()
        finally:
            for task in background:
                task.cancel()
            await self._close(control)
        return self._exit_code

    def stop(self) -> None:
        """Begin to drain; a second time: do not wait for the calls under way."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _drain(self) -> None:
        gateway = self.gateway
        running = len(gateway.exchanges)
        self.log.event("draining", calls=running, seconds=self.config.timeouts.drain_seconds)
        self.experiments.close()
        gateway.drain()
        await self.energy.capping.close()  # first of all: whoever ends us may not wait for the calls
        waking = asyncio.get_running_loop().create_task(self.parking.close())
        await self.own.drain()
        for watch in self._watches.values():
            watch.stop()
        until = monotonic() + self.config.timeouts.drain_seconds
        while gateway.exchanges or gateway.server.connections:
            if self._hurry.is_set() or monotonic() > until:
                break
            await asyncio.sleep(0.05)
        # An engine that hangs may take twice as long as any of its answers: whoever ends us has no patience for that.
        longest = max(until - monotonic(), self.config.parking.timeout_seconds)
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({waking, hurry}, timeout=longest, return_when="FIRST_COMPLETED")
        hurry.cancel()
        if not waking.done():
            waking.cancel()
        elif error := waking.exception():
            gateway.faults.report("waking what was parked", error)
        if gateway.exchanges:
            self.log.event("drain_cut_short", calls=len(gateway.exchanges))

    async def _close(self, control: Any) -> None:
        await self.own.close()
        self.gateway.close()
        await self.energy.close()
        await asyncio.sleep(0)  # the closed connections report their calls' ends
        self.gateway.settle()
        await control.close()
        await self._save_budgets()
        if self._process is not None:
            await self._process.stop()
        if self.gateway.tracing is not None:
            await asyncio.to_thread(self.gateway.tracing.close)
        if self.gateway.event_log is not None:
            self.gateway.event_log.close()
        self.log.close()

    async def _watch_process(self, process: VllmProcess) -> None:
        """The engine that we started has died for good: so do we, with its last words."""
        from backends.vllm.process import VllmFailed

        try:
            await process.keep()
        except VllmFailed as failed:
            sys.stderr.write(f"joulegate: {failed}\n")
            self._exit_code = 1
            self.stop()
        except Exception as error:  # noqa: BLE001  (reported; a server that nobody keeps must not be served from)
            self.gateway.faults.report("keeping vLLM", error)
            self._exit_code = 1
            self.stop()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                self.gateway.tell(Tick())  # workflows go idle, and expire
                self.own.tick()
                await self.energy.tick()
                await self._save_budgets()
                for engine in [engine for engine in self._retired if engine.pool.busy_count == 0]:
                    engine.pool.close()
                    self._retired.remove(engine)
            except Exception as error:  # noqa: BLE001  (reported; tried again the next time)
                self.gateway.faults.report("housekeeping", error)

    async def _save_budgets(self) -> None:
        if self._budgets is None:
            return
        now = monotonic()
        used = self.gateway.scheduler.quotas.budgets(now)
        try:
            await asyncio.to_thread(self._budgets.save, used, now)  # it waits for the disk
        except OSError as error:
            self.log.event("state_not_saved", detail=str(error))

    # --- engines and reload ---

    def _add_engine(self, config: EngineConfig) -> None:
        gateway = self.gateway
        engine = Engine(config, self.config.timeouts)
        if (before := gateway.engines.get(engine.name)) is not None:
            engine.take_over(before)
        gateway.engines[engine.name] = engine
        self._watch(engine)
        self.energy.metering.watch(engine)

    def _watch(self, engine: Engine) -> None:
        gateway = self.gateway
        self._watches[engine.name] = EngineWatch(
            engine,
            self.config.health,
            gateway.tell,
            gateway.probed,
            self.log.event,
            gateway.faults,
            gateway.progress,
            self.parking.probe,
        )

    def reload(self) -> None:
        """Read the configuration again and take over what can be changed while calls run."""
        self.log.reopen()
        if self._reload is None:
            self.log.event("reload_refused", detail="started without a configuration file")
            return
        try:
            config = self._reload()
        except ConfigError as error:
            self.log.event("reload_failed", detail=str(error))
            return
        gateway, old = self.gateway, self.config
        kept = diff(old, config)
        # What only a restart changes stays as it is; all else, keys above all, must fit to that and not to the file.
        config = config.model_copy(update={name: getattr(old, name) for name in NEEDS_RESTART})
        if problems := list(listen_problems(config.listen, bool(config.keys))):
            self.log.event("reload_failed", detail="\n".join(f"{'.'.join(place)}: {what}" for place, what in problems))
            return
        self.config = self.parking.config = config
        gateway.timeouts = config.timeouts
        gateway.server.limits, gateway.server.timeouts = config.limits, config.timeouts
        gateway.inner.answer_bytes_max = config.limits.inner_answer_bytes
        gateway.admission.configure(config)
        self.own.configure(config)
        gateway.tell(QuotasChanged(quotas(config)))
        gateway.tell(JouleQuotasChanged(joule_quotas(config)))
        limits = config.limits
        gateway.tell(LimitsChanged(limits.queue_calls, config.timeouts.queue_seconds, limits.workflows))
        if config.health != old.health:
            gateway.tell(BreakersChanged(config.health.failures_to_open, config.health.open_seconds))
        self._change_engines(old, config)
        gateway.scheduler.decisions.resize(limits.decisions)
        self.policies.reload(config.policy.name, config.policy.options)
        self.log.event("reloaded", needs_restart=kept)

    def _change_engines(self, old: Config, config: Config) -> None:
        gateway = self.gateway
        wanted = {engine.name: engine for engine in config.engines}
        leaving = {name: engine for name, engine in gateway.engines.items() if wanted.get(name) != engine.config}
        for name, engine in leaving.items():
            self._watches.pop(name).stop()
            if name not in wanted or wanted[name].url != engine.config.url:
                self.parking.leaves(engine)
            self._retired.append(engine)
        for name in gateway.engines.keys() - leaving.keys():
            stays = gateway.engines[name]
            stays.pool.connect_seconds = config.timeouts.connect_seconds
            stays.pool.idle_seconds = config.timeouts.engine_keep_alive_seconds
            if config.health != old.health:
                self._watches[name].stop()
                self._watch(stays)
        for name in leaving.keys() - wanted.keys():
            del gateway.engines[name]
        for name, added in wanted.items():
            if name in leaving or name not in gateway.engines:
                self._add_engine(added)
        gateway.tell(EnginesChanged(tuple(Engine.spec_of(engine) for engine in config.engines)))

    # --- for the control plane ---

    def ready(self) -> tuple[bool, list[str]]:
        """Whether new calls should come here, and if not, why."""
        reasons = []
        if not self._listens:
            reasons.append("starting")
        if self._stop.is_set():
            reasons.append("draining")
        engines, states = self.gateway.engines, self.gateway.scheduler.engines
        if not any(engine.healthy and not states[name].lost for name, engine in engines.items()):
            for name, engine in engines.items():
                asleep = states[name].unwakeable and f"sleeps and could not be woken: {states[name].unwakeable}"
                reasons.append(f"engine {name}: {engine.detail or asleep or 'breaker open'}")
        return not reasons, reasons

    def state(self) -> dict[str, Any]:
        """What the scheduler sees, and what the process holds."""
        gateway = self.gateway
        pools = [engine.pool for engine in (*gateway.engines.values(), *self._retired)]
        return {
            **snapshot(gateway.scheduler, monotonic()),
            "process": {
                "tasks": len(asyncio.all_tasks()),
                "client_connections": len(gateway.server.connections),
                "calls": len(gateway.exchanges),
                "engine_connections_busy": sum(pool.busy_count for pool in pools),
                "engine_connections_idle": sum(pool.idle_count for pool in pools),
                "buffered_bytes": gateway.server.buffered_bytes,
            },
        }

    def _engine_url(self, name: str) -> SplitResult | None:
        engine = self.gateway.engines.get(name)
        return urlsplit(engine.config.url) if engine is not None else None

    def metrics_text(self) -> str:
        """The metrics as Prometheus text."""
        return self.metrics.text()

    def _gauges(self) -> GaugeSnapshot:
        gateway = self.gateway
        gateway.settle()
        return GaugeSnapshot.of(
            gateway.scheduler,
            healthy={name: engine.healthy for name, engine in gateway.engines.items()},
            client_connections=len(gateway.server.connections),
            refused_connections=gateway.server.refused_connections,
            log_lines_dropped=self.log.lines_dropped,
        )
