"""The engines as the gateway holds them: their connections, and the watch on how they are."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from backends.vllm.fetch import FetchFailed, Load, fetch, parse_counters, parse_load, parse_models
from backends.vllm.pool import EnginePool
from proxy.http.relay import safe_value
from scheduler.events import EngineCounted, EngineLoad, EngineSpec, EngineStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.config import EngineConfig, HealthConfig, TimeoutsConfig
    from proxy.faults import Faults
    from scheduler.events import Event


class Engine:
    """One configured engine and its connections."""

    def __init__(self, config: EngineConfig, timeouts: TimeoutsConfig) -> None:
        self.config = config
        self.name = config.name
        self.shown_name = safe_value(config.name)
        url = str(config.url)
        self.path_prefix = urlsplit(url).path.rstrip("/").encode("ascii")
        self.pool = EnginePool(
            url, connect_seconds=timeouts.connect_seconds, idle_seconds=timeouts.engine_keep_alive_seconds
        )
        key = config.key()
        self.own_fields = b"authorization: Bearer %b\r\n" % key.encode("ascii") if key else b""
        """Header lines of our own: the engine's API key, if it has one."""
        self.replaces_authorization = bool(key)
        self.models: list[dict[str, Any]] | None = None
        """The entries of its /v1/models; None = not known yet."""
        self.healthy: bool | None = None
        self.detail = "not probed yet"
        self.load: Load | None = None
        self.fingerprint: bytes | None = None
        """`"system_fingerprint":"…"` as its streams say it; b"" = they do not, None = not seen yet."""

    def take_over(self, before: Engine) -> None:
        """After a reload, what was known of the same server holds on: it is as well as it was."""
        if before.config.url == self.config.url:
            self.models, self.healthy, self.detail = before.models, before.healthy, before.detail
            self.load, self.fingerprint = before.load, before.fingerprint

    @staticmethod
    def spec_of(config: EngineConfig) -> EngineSpec:
        """What the scheduler needs to know of an engine."""
        most = config.max_in_flight or config.max_connections
        return EngineSpec(config.name, most, config.park, config.park_idle_seconds, config.wake_seconds)


class EngineWatch:
    """Probes one engine: /health each `probe_seconds`, /metrics with it, /v1/models now and then."""

    def __init__(
        self,
        engine: Engine,
        health: HealthConfig,
        tell: Callable[[Event], None],
        probed: Callable[[Engine, EngineStatus], None],
        log_event: Callable[..., None],
        faults: Faults,
        progress: Callable[[str], tuple[tuple[str, int], ...]],
        parking: Callable[[Engine], Awaitable[None]],
    ) -> None:
        self.engine = engine
        self._parking = parking
        self._progress = progress
        self._health = health
        self._tell = tell
        self._probed = probed
        self._log_event = log_event
        self._faults = faults
        self._models_at = float("-inf")
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """No further probes."""
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            started = monotonic()
            try:
                await self._probe()
                self.engine.pool.close_aged()
            except Exception as error:  # noqa: BLE001  (reported; without probes nobody would see the engine die)
                self._faults.report("a probe", error, engine=self.engine.name)
            await asyncio.sleep(max(0.0, self._health.probe_seconds - (monotonic() - started)))

    async def _get(self, path: str) -> tuple[int, bytes]:
        engine = self.engine
        whole = engine.path_prefix.decode("ascii") + path
        return await fetch(engine.pool, whole, engine.own_fields, self._health.probe_timeout_seconds)

    async def _probe(self) -> None:
        engine = self.engine
        try:
            status, _ = await self._get("/health")
        except FetchFailed as failed:
            if failed.engine_fault:
                self._seen(False, str(failed))
            return
        # An engine that has no /health answers 404, and lives.
        if status >= 500:
            self._seen(False, f"/health answers {status}")
            return
        models = None
        if engine.healthy is not True or monotonic() - self._models_at >= self._health.models_seconds:
            models = await self._get_models()
        self._seen(True, "", models)
        try:
            status, body = await self._get("/metrics")
        except FetchFailed:
            status, body = 0, b""  # the next probe of /health decides whether the engine is down
        if status == 200:
            self._tell(EngineCounted(engine.name, parse_counters(body, monotonic()), self._progress(engine.name)))
        engine.load = parse_load(body) if status == 200 else None
        running, waiting, usage = engine.load or (None, None, None)
        self._tell(EngineLoad(engine.name, running, waiting, usage))
        await self._parking(engine)

    async def _get_models(self) -> tuple[str, ...] | None:
        try:
            status, body = await self._get("/v1/models")
        except FetchFailed:
            return None
        entries = parse_models(body) if status == 200 else None
        if entries is None:
            return None
        self._models_at = monotonic()
        self.engine.models = entries
        return tuple(entry["id"] for entry in entries)

    def _seen(self, healthy: bool, detail: str, models: tuple[str, ...] | None = None) -> None:
        engine = self.engine
        if healthy is not engine.healthy:
            self._log_event("engine_up" if healthy else "engine_down", engine=engine.name, detail=detail)
            engine.fingerprint = None  # it may be another process
        engine.healthy, engine.detail = healthy, detail
        self._probed(engine, EngineStatus(engine.name, healthy, models))
