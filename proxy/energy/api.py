"""`GET /v1/energy`: who used how many joules? A key sees its own, the control plane all."""

from __future__ import annotations

import asyncio
import csv
import io
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import orjson
from aiohttp import web

from proxy.energy.store import StoreBusy, StoreClosed
from proxy.energy.store_query import By, Question, cost
from proxy.errors import RequestFault, error_object
from scheduler.energy.bill_accounts import COMPONENTS, ENGINE_COMPONENTS, UNCERTAINTY, weakest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.energy.config import EnergyConfig
    from proxy.energy.store import EnergyStore
    from proxy.energy.store_query import Answer, Group
    from proxy.own.request import OwnRequest
    from proxy.own.router import Router

ROWS = (100, 10_000)
"""In an answer: by default, at most."""
DEFAULT_SECONDS = 86_400.0
BY: tuple[By, ...] = get_args(By)
CSV_TYPE = "text/csv; charset=utf-8"
_PARAMETERS = ("by", "since", "until", "format", "limit")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so is a formula to spreadsheets; names come from clients."""


class EnergyDoor:
    """The question's both doors."""

    def __init__(self, store: EnergyStore, config: EnergyConfig, refresh: Callable[[], None] | None = None) -> None:
        """`refresh` is called before each question: what has been booked by then is in the answer."""
        self._store = store
        self._config = config
        self._refresh = refresh

    def register(self, router: Router) -> None:
        """On the data plane."""
        router.add("GET", "/v1/energy", self._own)

    async def control(self, request: web.Request) -> web.Response:
        """aiohttp's handler for the control plane: the whole gateway, or with `key=` one key."""
        parameters = dict(request.query)
        key = parameters.pop("key", None)
        try:
            body, kind = await self.answer(parameters, key)
        except RequestFault as fault:
            error = error_object(fault.status, fault.reason, fault.message, fault.param)
            return web.Response(body=error, status=fault.status, content_type="application/json")
        return web.Response(body=body, headers={"content-type": kind})

    async def _own(self, request: OwnRequest) -> None:
        body, kind = await self.answer(request.query(), request.key_name)
        request.answer(body, content_type=kind.encode("ascii"))

    async def answer(self, parameters: Mapping[str, str], key: str | None) -> tuple[bytes, str]:
        """(body, content type) for the query's parameters. `key`: see Question. Raises RequestFault."""
        question, kind = read(parameters, key, time.time())
        if self._refresh is not None:
            self._refresh()
        try:
            found = await asyncio.wrap_future(self._store.ask(question))
        except StoreBusy as error:
            raise RequestFault(503, "energy_ledger_busy", str(error), retry_after_seconds=1.0) from None
        except StoreClosed as error:
            raise RequestFault(503, "energy_ledger_closed", str(error)) from None
        if len(found.rows) > ROWS[0]:  # takes milliseconds: not on the loop
            return await asyncio.to_thread(write, question, found, self._config, kind)
        return write(question, found, self._config, kind)


def read(parameters: Mapping[str, str], key: str | None, now: float) -> tuple[Question, str]:
    """(the question, `json` or `csv`) from a query. Raises RequestFault that names the parameter."""
    for name in parameters:
        if name not in _PARAMETERS:
            raise _fault(name, f"there is no parameter {name[:64]!r}; there are {', '.join(_PARAMETERS)}")
    by = parameters.get("by", "key")
    found = next((one for one in BY if one == by), None)
    if found is None:
        raise _fault("by", f"must be one of {', '.join(BY)}, not {by[:64]!r}")
    kind = parameters.get("format", "json")
    if kind not in ("json", "csv"):
        raise _fault("format", f"must be json or csv, not {kind[:64]!r}")
    until = _time("until", parameters.get("until"), now, now)
    since = _time("since", parameters.get("since"), until - DEFAULT_SECONDS, now)
    if since >= until:
        raise _fault("since", "must be before until")
    text = parameters.get("limit", str(ROWS[0]))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= ROWS[1]):
        raise _fault("limit", f"must be a whole number from 1 to {ROWS[1]}")
    return Question(found, since, until, key, int(text)), kind


def _time(name: str, text: str | None, default: float, now: float) -> float:
    """Unix seconds, RFC 3339, or seconds before now such as `-3600`."""
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text[:64].replace(" ", "+"))
        except ValueError:
            raise _fault(name, "must be unix seconds, a time like 2026-01-31T12:00:00Z, or like -3600") from None
        value = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if not math.isfinite(value) or abs(value) > 1e11:
        raise _fault(name, "must be a time of this age")
    return now + value if value < 0 else value


def _fault(name: str, message: str) -> RequestFault:
    return RequestFault(400, "energy_query", message, param=name[:64])


def write(question: Question, found: Answer, config: EnergyConfig, kind: str) -> tuple[bytes, str]:
    """(body, content type) of an answer."""
    rows = [_row(question, group, config) for group in found.rows]
    if question.by == "component":
        rows = [] if not rows else _components(rows[0])
    if kind == "csv":
        return _csv(question, rows), CSV_TYPE
    return orjson.dumps(
        {
            "object": "energy",
            "by": question.by,
            "since": question.since,
            "until": question.until,
            "energy_source": weakest(group.figure.source for group in found.rows),
            "ledger_begins": found.oldest,
            "rows": rows,
            "rows_in_all": len(rows) if question.by == "component" else found.groups,
            "gaps": [gap._asdict() for gap in found.gaps],
            "factors": {
                "carbon_grams_per_kwh_by_hour_utc": config.carbon_by_hour(),
                "price_per_kwh_by_hour_utc": config.price_by_hour(),
                "currency": config.price_currency if config.price_by_hour() is not None else None,
                "source": "operator",
            },
        }
    ), "application/json"


def _row(question: Question, group: Group, config: EnergyConfig) -> dict[str, Any]:
    figure = group.figure
    interval = None if figure.low_joules is None else [figure.low_joules, figure.high_joules]
    row: dict[str, Any] = {
        **group.names,
        "energy_joules": figure.marginal_joules,
        "energy_interval_joules": interval,
        "energy_full_joules": figure.full_joules,
        "energy_source": figure.source,
        "complete": figure.complete,
        "calls": figure.calls,
        "components_joules": figure.components,
        "joules_by_source": figure.by_source,
        "carbon_grams": cost(group.by_hour, config.carbon_by_hour()),
        "price": cost(group.by_hour, config.price_by_hour()),
    }
    if group.engine and question.key is None:
        here = {side for side in ("cpu", "dram") if group.engine.get(f"{side}_counter")}
        row["engine_joules"] = {
            name: group.engine.get(name, 0.0)
            for name in ENGINE_COMPONENTS
            if not name.startswith(("cpu", "dram")) or name.partition("_")[0] in here
        }
    return row


def _components(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each component instead of one for all."""
    found = {**row["components_joules"], **row.get("engine_joules", {})}
    return [
        {"component": name, "energy_joules": joules, "energy_source": row["energy_source"]}
        for name, joules in found.items()
    ]


def _csv(question: Question, rows: list[dict[str, Any]]) -> bytes:
    """Flat: each component a column. Unknown is an empty cell, and never 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if question.by == "component":
        columns = ["component", "energy_joules", "energy_source"]
        writer.writerow(columns)
        writer.writerows([_cell(row[name]) for name in columns] for row in rows)
        return text.getvalue().encode("utf-8", "replace")
    names = [name for name in ("key", "workflow", "model", "engine") if rows and name in rows[0]]
    flat = ("energy_joules", "energy_full_joules", "energy_source", "complete", "calls", "carbon_grams", "price")
    parts = COMPONENTS[:UNCERTAINTY]
    own = ENGINE_COMPONENTS if any("engine_joules" in row for row in rows) else ()
    writer.writerow([*names, *flat, "energy_low_joules", "energy_high_joules", *parts, *(f"engine_{n}" for n in own)])
    for row in rows:
        low, high = row["energy_interval_joules"] or (None, None)
        inner, outer = row["components_joules"], row.get("engine_joules", {})
        values = [*(row[name] for name in (*names, *flat)), low, high]
        values += [*(inner.get(name) for name in parts), *(outer.get(name) for name in own)]
        writer.writerow([_cell(value) for value in values])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) > 1 and value.startswith(_FORMULA):
        return f"'{value}"
    return value
