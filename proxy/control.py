"""The control plane: metrics, health, and what the scheduler sees. A port of its own, on loopback unless asked otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.metrics import Metrics

_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))


class Control:
    """A running control plane."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    async def close(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()


async def start_control(
    host: str,
    port: int,
    *,
    public: bool,
    state: Callable[[], dict[str, Any]],
    ready: Callable[[], tuple[bool, list[str]]],
    metrics: Metrics,
) -> Control:
    """Serve on host and port (0 = any free one). OSError if it is taken.

    Unless `public`, requests must name loopback as their host: a page in somebody's browser that resolves its own name
    to 127.0.0.1 (DNS rebinding) does not.
    """

    async def get_metrics(request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"content-type": kind})

    async def get_health(request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def get_ready(request: web.Request) -> web.Response:
        fine, reasons = ready()
        return _json({"ready": fine, "reasons": reasons}, 200 if fine else 503)

    async def get_state(request: web.Request) -> web.Response:
        return _json(state())

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if not public and request.host.rpartition(":")[0] not in _LOOPBACK_NAMES and request.host not in _LOOPBACK_NAMES:
            return _error(403, "host", f"the host {request.host!r} is not this machine's loopback")
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _error(error.status, "not_found" if error.status == 404 else "request", error.reason)
        return response

    app = web.Application(middlewares=[guard], client_max_size=65_536)
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/health", get_health)
    app.router.add_get("/ready", get_ready)
    app.router.add_get("/admin/state", get_state)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    bound: int = runner.addresses[0][1]
    return Control(runner, bound)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"message": message, "type": "control_error", "param": None, "code": code}}, status)
