"""The routes that say something of the server: models, tokenizer, health, version, load, metrics."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web

from backends.twin.server.errors import checked, read_json
from backends.twin.server.fields import DetokenizeFields, Fields, TokenizeChatFields, TokenizeFields, TokenizeTextFields
from backends.twin.server.prompts import rendered
from backends.twin.server.service import VLLM_VERSION, json_answer, unix_seconds

if TYPE_CHECKING:
    from backends.twin.server.metrics import Metrics
    from backends.twin.server.service import Service


async def models(service: Service, request: web.Request) -> web.Response:
    """GET /v1/models."""
    del request
    created = unix_seconds()
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    model = {
        "id": service.model_name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": service.calibration.model.id,
        "parent": None,
        "max_model_len": service.max_model_len,
        "permission": [permission],
    }
    return json_answer({"object": "list", "data": [model]})


async def tokenize(service: Service, request: web.Request) -> web.Response:
    """POST /tokenize, of a text or of a chat."""
    data: Any = read_json(await request.read())
    kind: type[Fields] = TokenizeTextFields
    if isinstance(data, dict) and "messages" in data and "prompt" not in data:
        kind = TokenizeChatFields
    elif isinstance(data, dict) and not isinstance(data.get("prompt"), str):
        kind = TokenizeFields
    fields = checked(kind, data)
    if isinstance(fields, TokenizeChatFields):
        service.check_model(fields.model)
        prompt = rendered(
            fields.messages,
            service.model_name,
            tools=fields.tools or (),
            add_generation_prompt=fields.add_generation_prompt,
            continue_final_message=fields.continue_final_message,
        )
        strings = fields.return_token_strs
    else:
        assert isinstance(fields, TokenizeTextFields)
        service.check_model(fields.model)
        prompt, strings = fields.prompt, fields.return_token_strs
    ids = service.prompt_ids(prompt) if prompt else []
    pieces = [service.tokenizer.piece(each) for each in ids] if strings else None
    return json_answer({"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids, "token_strs": pieces})


async def detokenize(service: Service, request: web.Request) -> web.Response:
    """POST /detokenize."""
    fields = await service.fields(request, DetokenizeFields)
    service.check_model(fields.model)
    return json_answer({"prompt": service.tokenizer.decode(fields.tokens, special=True)})


async def health(service: Service, request: web.Request) -> web.Response:
    """GET /health, and GET or POST /ping."""
    del service, request
    return web.Response()


async def version(service: Service, request: web.Request) -> web.Response:
    """GET /version: whose API this is, and that nothing is behind it but a simulation."""
    del request
    said = {"version": VLLM_VERSION, "simulated": True, "engine": "twin", "calibration": service.calibration.name}
    return json_answer(said)


async def load(service: Service, request: web.Request) -> web.Response:
    """GET /load."""
    del request
    return json_answer({"server_load": service.load})


async def reset_prefix_cache(service: Service, request: web.Request) -> web.Response:
    """POST /reset_prefix_cache, as vLLM has it with VLLM_SERVER_DEV_MODE=1: while calls run it is done only if they may
    begin again."""
    again = request.query.get("reset_running_requests", "false").lower() in ("true", "1")
    done = again or not service.runtime.engine.requests
    if done:
        service.runtime.reset_prefix_cache()
    return json_answer({"success": done})


def metrics_route(metrics: Metrics) -> Any:
    """GET /metrics."""

    async def route(service: Service, request: web.Request) -> web.Response:
        del service, request
        headers = {"content-type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=metrics.page(), headers=headers)

    return route
