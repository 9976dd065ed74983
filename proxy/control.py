"""The control plane: metrics, health, and what the scheduler sees, on a port of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from proxy.ab.pages import add_experiments
from proxy.control_policy import add_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aiohttp.typedefs import Handler, Middleware
    from prometheus_client.core import Metric

    from proxy.ab.shell import Experiments
    from proxy.energy.capping import Capping
    from proxy.energy.shell import EnergyShell
    from proxy.metrics import Metrics
    from proxy.parking import ParkingShell
    from proxy.policies import PolicyDesk

BODY_BYTES_MAX = 65_536
KEEP_ALIVE_SECONDS = 75.0
"""Also how long a request's head may take to arrive."""
_CODES = {403: "host", 404: "not_found", 405: "method", 413: "body_too_large"}

_log = logging.getLogger("joulegate.control")


class _OneLine(logging.Filter):
    """aiohttp logs a traceback for each request that is not HTTP: the first line says all there is to say."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(error := record.exc_info[1], HttpProcessingError):
            record.msg, record.args = "%s: %r", (record.getMessage(), error.message[:256])
            record.exc_info = None
        return True


_http_log = logging.getLogger("joulegate.control.http")
_http_log.addFilter(_OneLine())


class Control:
    """A running control plane."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()


class _Collected(Collector):
    """Metrics read at one moment."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Desks(NamedTuple):
    """Who has pages of its own here."""

    energy: EnergyShell
    policies: PolicyDesk
    experiments: Experiments
    parking: ParkingShell


def _add_engines(app: web.Application, parking: ParkingShell) -> None:
    async def get_engines(request: web.Request) -> web.Response:
        return _json(parking.describe())

    app.router.add_get("/admin/engines", get_engines)


def _add_energy(app: web.Application, energy: EnergyShell) -> None:
    async def get_energy_model(request: web.Request) -> web.Response:
        return _json(energy.export() if "export" in request.query else energy.describe())

    app.router.add_get("/admin/energy-model", get_energy_model)
    app.router.add_get("/admin/energy", energy.door.control)
    add_caps(app, energy.capping)


async def start_control(
    host: str,
    port: int,
    *,
    public: bool,
    state: Callable[[], dict[str, Any]],
    ready: Callable[[], tuple[bool, list[str]]],
    metrics: Metrics,
    desks: Desks | None = None,
    allowed_hosts: Collection[str] = (),
) -> Control:
    """Serve on host and port (0 = any free one). OSError if it is taken.

    Unless `public`, requests must name as their host loopback, `host` itself or one of `allowed_hosts` (names without a
    port): a page in somebody's browser that has its own name resolve to 127.0.0.1 (DNS rebinding) does not.
    """

    async def get_metrics(request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        # Read here, where nothing changes meanwhile; put into words, which takes far longer, beside the event loop.
        families = _Collected(list(metrics.registry.collect()))
        body = await asyncio.to_thread(encode, families)
        return web.Response(body=body, headers={"content-type": kind})

    async def get_health(request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def get_ready(request: web.Request) -> web.Response:
        fine, reasons = ready()
        notes = [] if desks is None else [*desks.policies.notes(), *desks.parking.notes()]
        return _json({"ready": fine, "reasons": reasons, **({"notes": notes} if notes else {})}, 200 if fine else 503)

    async def get_state(request: web.Request) -> web.Response:
        return _json(state())

    app = web.Application(
        middlewares=[_errors, _host_guard(public, {host.lower(), *map(str.lower, allowed_hosts)})],
        client_max_size=BODY_BYTES_MAX,
    )
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/health", get_health)
    app.router.add_get("/ready", get_ready)
    app.router.add_get("/admin/state", get_state)
    if desks is not None:
        _add_energy(app, desks.energy)
        add_pages(app, desks.policies)
        add_experiments(app, desks.experiments)
        _add_engines(app, desks.parking)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_http_log,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        lingering_time=1.0,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    bound: int = runner.addresses[0][1]
    return Control(runner, bound)


def add_caps(app: web.Application, capping: Capping) -> None:
    """What is decided of GPUs' limits, and the operator's word after somebody else has set one."""

    async def get_caps(request: web.Request) -> web.Response:
        return _json(capping.describe())

    async def resume(request: web.Request) -> web.Response:
        if (origin := request.headers.get("origin")) is not None and urlsplit(origin).netloc != request.host:
            return _error(403, "host", "a page of another site may not do this")
        engine = request.query.get("engine", "")
        if not capping.resume(engine):
            return _error(404, "not_found", "?engine= must name one of those in GET /admin/caps")
        return _json({"resumed": engine})

    app.router.add_get("/admin/caps", get_caps)
    app.router.add_post("/admin/caps/resume", resume)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON; what went wrong inside is for the operator's eyes, on standard error."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _error(error.status, _CODES.get(error.status, "request"), error.text or error.reason)
        if (allow := error.headers.get("allow")) is not None:
            answer.headers["allow"] = allow
        return answer
    except Exception:  # noqa: BLE001  (logged, and answered without a traceback)
        _log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal", "the control plane failed to answer; its log on standard error says why")


def _host_guard(public: bool, allowed: set[str]) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Only browsers can be led here by a name of somebody else's, and those always send Host.
        given = request.headers.get("host")
        if not public and given is not None:
            name = _host_name(given)
            if name not in allowed and not _is_loopback(name):
                return _error(
                    403, "host", f"the host {given[:256]!r} is neither loopback nor this control plane's address"
                )
        return await handler(request)

    return guard


def _host_name(host: str) -> str:
    """`Host` without its port and, for IPv6, its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"message": message, "type": "control_error", "param": None, "code": code}}, status)
