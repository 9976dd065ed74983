"""The twin's limits on prescribed forms, and what a client hears when the twin itself fails."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, NoReturn, cast

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer

from backends.twin.server import about
from backends.twin.server.app import application
from backends.twin.server.errors import ApiError
from backends.twin.server.forms import json_of
from backends.twin.server.metrics import Metrics, Observed
from backends.twin.server.runtime import Runtime
from backends.twin.server.service import EventStream, Service
from backends.twin.server.tokenizer import tokenizer


def arrays(*counts: int, of: Any) -> Any:
    """Nested arrays of so many items each."""
    for count in reversed(counts):
        of = {"type": "array", "minItems": count, "items": of}
    return of


def wide(width: int, of: Any) -> dict[str, Any]:
    """An object of so many properties."""
    return {"type": "object", "properties": {f"p{number}": of for number in range(width)}}


def doubling(levels: int) -> dict[str, Any]:
    """Objects whose two properties refer to the next one."""
    definitions: dict[str, Any] = {"d0": {"type": "null"}}
    for level in range(1, levels + 1):
        following = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"properties": {"a": following, "b": following, "c": following, "d": following}}
    return {"$ref": f"#/$defs/d{levels}", "$defs": definitions}


@pytest.mark.parametrize(
    ("schema", "limit"),
    [
        (arrays(16, 60, 60, of={"type": "null"}), "10000 values"),
        (wide(30, wide(30, wide(30, {"type": "null"}))), "10000 values"),
        ({"type": "object", "required": [f"p{number}" for number in range(10_001)]}, "10000 values"),
        (doubling(7), "10000 values"),
        (arrays(60, 60, of={"type": "string", "minLength": 4096}), "500000 characters"),
        (arrays(60, 60, of={"const": "x" * 1000}), "500000 characters"),
        (arrays(60, 60, of={"enum": [["x" * 1000]]}), "500000 characters"),
        (arrays(60, 60, of={"type": "object", "properties": {"x" * 1000: {"type": "null"}}}), "500000 characters"),
    ],
    ids=["arrays", "properties", "required", "references", "strings", "const", "enum", "names"],
)
def test_a_short_schema_cannot_ask_for_very_much(schema: dict[str, Any], limit: str) -> None:
    with pytest.raises(ApiError, match=f"Failed to transform.*more than {limit}") as refusal:
        json_of(schema, random.Random(1))
    assert refusal.value.status == 400


def test_a_large_form_within_the_limit_is_made() -> None:
    assert json_of(arrays(60, 60, of={"type": "null"}), random.Random(1)).count("null") == 3600


@pytest.mark.parametrize("key", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
def test_a_bound_of_400_digits_is_refused(key: str) -> None:
    for bound in (10**400, -(10**400)):
        with pytest.raises(ApiError, match=f"{key} is too large") as refusal:
            json_of({"type": "integer", key: bound}, random.Random(1))
        assert refusal.value.status == 400


def test_a_failure_of_the_twin_is_answered_in_json_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_service: Service, _request: web.Request) -> NoReturn:
        raise ZeroDivisionError("a secret")

    async def broken_midway(_service: Service, request: web.Request) -> NoReturn:
        events = EventStream(request)
        await events.open()
        await events.send({"n": 1})
        raise ZeroDivisionError("another secret")

    monkeypatch.setattr(about, "models", broken)
    monkeypatch.setattr(about, "health", broken_midway)

    async def ask() -> None:
        observed = Observed(4096)
        service = Service(cast("Runtime", None), tokenizer(1), observed, "tiny")
        async with TestClient(TestServer(application(service, cast("Metrics", None)))) as client:
            answer = await client.get("/v1/models")
            assert (answer.status, answer.content_type) == (500, "application/json")
            error = (await answer.json())["error"]
            assert (error["type"], error["param"], error["code"]) == ("InternalServerError", None, 500)
            assert "secret" not in error["message"] and "Traceback" not in error["message"]
            assert answer.headers["x-joulegate-engine"] == "twin (simulated)"
            cut = await client.get("/health")
            with pytest.raises(ClientPayloadError):
                await cut.read()

    with caplog.at_level(logging.ERROR):
        asyncio.run(ask())
    failures = [record for record in caplog.records if record.name == "backends.twin.server.app"]
    assert [record.getMessage().split(" at ")[1] for record in failures] == ["GET /v1/models", "GET /health"]
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in failures)
