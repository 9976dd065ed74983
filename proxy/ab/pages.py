"""The control plane's pages about experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from scheduler.experiments.definition import ExperimentError

if TYPE_CHECKING:
    from proxy.ab.shell import Experiments


def add_experiments(app: web.Application, experiments: Experiments) -> None:
    """`/admin/experiments`: GET lists them, POST starts one; `/{id}`: one, its `/blocks`, and POST `/stop`."""

    async def listed(request: web.Request) -> web.Response:
        return _json({"experiments": experiments.all()})

    async def started(request: web.Request) -> web.Response:
        if (refused := _not_json(request)) is not None:
            return refused
        try:
            wanted = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return _fault(400, "json", f"the body is not JSON: {error}")
        try:
            return _json(await experiments.start(wanted), 201)
        except ExperimentError as error:
            return _fault(400, "experiment", str(error), error.problems)
        except OSError as error:
            return _fault(500, "disk", f"the experiment was not started: {error}")

    async def shown(request: web.Request) -> web.Response:
        told = experiments.describe(request.match_info["id"])
        return _unknown(request) if told is None else _json(told)

    async def stopped(request: web.Request) -> web.Response:
        if (refused := _not_json(request)) is not None:
            return refused
        told = experiments.stop(request.match_info["id"])
        return _unknown(request, "runs") if told is None else _json(told)

    async def blocks(request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        store = experiments.store
        path = store.blocks(name) if store is not None and name in store.names() else None
        if path is None:
            return _unknown(request)
        return web.FileResponse(path, headers={"content-type": "application/jsonl"})

    app.router.add_get("/admin/experiments", listed)
    app.router.add_post("/admin/experiments", started)
    app.router.add_get("/admin/experiments/{id}", shown)
    app.router.add_post("/admin/experiments/{id}/stop", stopped)
    app.router.add_get("/admin/experiments/{id}/blocks", blocks)


def _not_json(request: web.Request) -> web.Response | None:
    # A page of somebody else's can send text to this port without asking, but not JSON.
    if request.content_type == "application/json":
        return None
    return _fault(415, "content_type", "send JSON, with content-type: application/json")


def _unknown(request: web.Request, what: str = "is known") -> web.Response:
    return _fault(404, "unknown_experiment", f"no experiment {request.match_info['id'][:64]!r} {what}")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _fault(status: int, code: str, message: str, problems: list[str] | None = None) -> web.Response:
    error = {"message": message, "type": "control_error", "param": None, "code": code}
    return _json({"error": {**error, **({"problems": problems} if problems else {})}}, status)
