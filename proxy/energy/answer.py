"""What is a client told of its call's joules? In the answer's head, in a stream's usage, and on the call's span."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.bill_calls import Call, Estimate

UNAVAILABLE: dict[str, object] = {"energy_joules": None, "energy_source": "unavailable"}
"""No meter, no model: unknown is not 0."""
WEAKEST_FIRST = ("simulated", "modelled", "measured")


def span_attributes(estimate: Estimate | None) -> dict[str, str | float]:
    """Of a call's span. Unknown joules are left out, and the source says so."""
    if estimate is None:
        return {}
    found: dict[str, str | float] = {"joulegate.energy.source": estimate.source}
    if estimate.joules is not None and estimate.low is not None and estimate.high is not None:
        found["joulegate.energy.joules"] = estimate.joules
        found["joulegate.energy.low_joules"] = estimate.low
        found["joulegate.energy.high_joules"] = estimate.high
    return found


def answer_headers(estimate: Estimate | None) -> bytes:
    """Header lines of a call's answer, complete with their ends; b"" for a call that has no bill."""
    if estimate is None:
        return b""
    joules, low, high, source = estimate
    if joules is None or low is None or high is None:
        return b"x-energy-source: unavailable\r\n"
    return b"x-energy-joules: %.4f\r\nx-energy-source: %b\r\nx-energy-interval: %.4f-%.4f\r\n" % (
        joules, source.encode("ascii"), low, high,
    )  # fmt: skip


def usage_members(estimate: Estimate | None) -> dict[str, object]:
    """The same as members of a usage object."""
    if estimate is None:
        return {}
    joules, low, high, source = estimate
    return {
        "energy_joules": joules,
        "energy_interval_joules": None if low is None else [low, high],
        "energy_source": source,
    }


def call_members(call: Call | None) -> dict[str, object]:
    """Of a call's bill: settled, or preliminary so far."""
    if call is None or call.marginal_joules is None:
        return dict(UNAVAILABLE)
    return {
        "energy_joules": call.marginal_joules,
        "energy_interval_joules": [call.low_joules, call.high_joules],
        "energy_full_joules": call.full_joules,
        "energy_source": call.source,
        "energy_settled": call.settled,
    }


def sum_members(parts: Iterable[dict[str, object]]) -> dict[str, object]:
    """Of several calls together. Unknown as soon as one of them is."""
    joules, sources = 0.0, set()
    for part in parts:
        if not isinstance(value := part.get("energy_joules"), float):
            return dict(UNAVAILABLE)
        joules += value
        sources.add(str(part["energy_source"]))
    if not sources:
        return dict(UNAVAILABLE)
    return {"energy_joules": joules, "energy_source": next(one for one in WEAKEST_FIRST if one in sources)}


def usage_bytes(estimate: Estimate | None) -> bytes:
    """The same as they stand behind the other members of a usage object, comma first."""
    members = usage_members(estimate)
    return b"," + orjson.dumps(members)[1:-1] if members else b""
