"""Which route answers what, and what is on every answer?"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aiohttp import web

from backends.twin.server import about, power, sleep
from backends.twin.server.chat import chat_completions
from backends.twin.server.completions import completions
from backends.twin.server.embeddings import embeddings
from backends.twin.server.errors import ApiError, DetailError
from backends.twin.server.responses import responses, stored_response
from backends.twin.server.service import json_answer, request_id_header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.twin.server.metrics import Metrics
    from backends.twin.server.service import Service

    Route = Callable[[Service, web.Request], Awaitable[web.StreamResponse]]
    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_BYTES_MAX = 64 * 1024 * 1024
ENGINE_HEADER = "x-joulegate-engine"
ENGINE = "twin (simulated)"
_STARTED = ContextVar("_STARTED", default=False)
"""Has the answer to the request at hand begun?"""
_logger = logging.getLogger(__name__)


def application(service: Service, metrics: Metrics) -> web.Application:
    """The whole API. HEAD is refused where vLLM refuses it."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_answers(service)])

    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        _STARTED.set(True)
        response.headers[ENGINE_HEADER] = ENGINE
        response.headers["x-request-id"] = request_id_header(request)
        response.headers["server"] = "joulegate-twin"

    app.on_response_prepare.append(on_prepare)
    routes: list[tuple[str, str, Route, bool]] = [
        ("POST", "/v1/chat/completions", chat_completions, True),
        ("POST", "/v1/completions", completions, True),
        ("POST", "/v1/responses", responses, True),
        ("GET", "/v1/responses/{response_id}", stored_response, False),
        ("POST", "/v1/responses/{response_id}/cancel", stored_response, False),
        ("POST", "/v1/embeddings", embeddings, True),
        ("GET", "/v1/models", about.models, False),
        ("POST", "/tokenize", about.tokenize, False),
        ("POST", "/detokenize", about.detokenize, False),
        ("GET", "/health", about.health, False),
        ("GET", "/ping", about.health, False),
        ("POST", "/ping", about.health, False),
        ("GET", "/version", about.version, False),
        ("GET", "/load", about.load, False),
        ("GET", "/metrics", about.metrics_route(metrics), False),
        ("POST", "/reset_prefix_cache", about.reset_prefix_cache, False),
        ("GET", "/power", power.power, False),
        ("POST", "/power/limit", power.set_limit, False),
    ]
    if service.sleep_mode:
        routes += [
            ("POST", "/sleep", sleep.sleep, False),
            ("POST", "/wake_up", sleep.wake_up, False),
            ("GET", "/is_sleeping", sleep.is_sleeping, False),
        ]
    for method, path, route, counted in routes:
        app.router.add_route(method, path, _bound(service, route, counted=counted))
    return app


def _bound(service: Service, route: Route, *, counted: bool) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        service.load += counted
        try:
            if counted:
                await service.runtime.awake()
            return await route(service, request)
        finally:
            service.load -= counted

    return handler


def _answers(service: Service) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        _STARTED.set(False)
        try:
            response = await handler(request)
        except ConnectionResetError:
            return web.Response()  # its client is gone, so nobody is told
        except ApiError as error:
            response = json_answer(error.body(), error.status)
        except DetailError as error:
            response = json_answer({"detail": str(error)}, error.status)
        except web.HTTPMethodNotAllowed as refused:
            allow = {"allow": ", ".join(sorted(refused.allowed_methods))}
            response = json_answer({"detail": "Method Not Allowed"}, 405, allow)
        except web.HTTPRequestEntityTooLarge:
            too_long = ApiError(f"The body is longer than {BODY_BYTES_MAX} bytes, the twin's limit", status=413)
            response = json_answer(too_long.body(), 413)
        except web.HTTPNotFound:
            response = json_answer({"detail": "Not Found"}, 404)
        except web.HTTPException:
            raise
        except Exception:
            _logger.exception("The twin failed at %s %s", request.method, request.path)
            response = _failed(request)
        resource = request.match_info.route.resource
        if resource is not None:
            service.observed.answered(resource.canonical, request.method, response.status)
        return response

    return middleware


def _failed(request: web.Request) -> web.Response:
    """The answer to a request at which the twin itself failed."""
    if _STARTED.get() and request.transport is not None:
        request.transport.close()  # a stream that breaks off must not look like one that ended
    failure = ApiError(
        "The twin (simulated) failed at this request; its log says why", status=500, kind="InternalServerError"
    )
    return json_answer(failure.body(), failure.status)
