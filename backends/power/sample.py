"""What did a device say, all at one time?"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast, get_args

from backends.power.device import Limits, PowerDevice, Reading, Source, Unavailable, Why

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
State = Why | Literal["ok"]
READINGS: tuple[Reading, ...] = get_args(Reading)
WHOLE: frozenset[Why] = frozenset(("absent", "reset", "lost", "unreachable", "hanging"))
"""They speak of the whole device: there is no use in asking it for more."""
TEXT_CHARS = 300


class Sample(NamedTuple):
    """One look at a device. What could not be read is None, and `missing` says why."""

    device: str
    """as the configuration names it"""
    at_seconds: float
    """monotonic clock, around the reading of the counter"""
    source: Source
    state: State
    """`ok`, or what is wrong with the device as a whole; `reset` may come with readings: the counter began again"""
    detail: str = ""
    energy_joules: float | None = None
    power_watts: float | None = None
    instant_power_watts: float | None = None
    limits: Limits | None = None
    sm_clock_mhz: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: frozenset[str] | None = None
    persistence_mode: bool | None = None
    missing: Mapping[Reading, Why] = {}

    @property
    def binding(self) -> bool | None:
        """Whether the power limit holds the card back. None = not known. A limit that does not bind saves nothing."""
        return None if self.throttle_reasons is None else "sw_power_cap" in self.throttle_reasons


def failed(device: str, source: Source, why: Why, detail: str = "") -> Sample:
    """Nothing could be read."""
    missing = dict.fromkeys(READINGS, why)
    return Sample(device, time.monotonic(), source, why, detail[:TEXT_CHARS], missing=missing)


def take(label: str, device: PowerDevice) -> Sample:
    """Read everything. Never raises Unavailable."""
    whole = getattr(device, "sample", None)  # a device over a network answers all in one go
    if whole is not None:
        return cast("Sample", whole(label))
    found: dict[str, Any] = {}
    missing: dict[Reading, Why] = {}
    started = time.monotonic()
    try:
        found["energy_joules"] = _one(device.energy_joules, "energy_joules", missing)
        at_seconds = (started + time.monotonic()) / 2
        for name in READINGS[1:]:
            if name in device.capabilities:
                found[name] = _one(getattr(device, name), name, missing)
            else:
                missing[name] = "not_supported"
    except Unavailable as gone:
        return failed(label, device.source, gone.why, gone.detail)
    state: State = "ok"
    detail = ""
    if len(missing) == len(READINGS):  # nothing at all: that is the device's own state
        state = missing["energy_joules"]
        detail = "none of its readings can be had"
    return Sample(label, at_seconds, device.source, state, detail, missing=missing, **found)


def _one(read: Callable[[], T], name: Reading, missing: dict[Reading, Why]) -> T | None:
    try:
        return read()
    except Unavailable as unavailable:
        if unavailable.why in WHOLE:
            raise
        missing[name] = unavailable.why
        return None


def to_json(sample: Sample, now: float) -> dict[str, Any]:
    """As the agent sends it: its age, since two hosts share no clock."""
    fields = sample._asdict()
    fields["age_seconds"] = now - fields.pop("at_seconds")
    fields["limits"] = None if sample.limits is None else sample.limits._asdict()
    fields["throttle_reasons"] = None if sample.throttle_reasons is None else sorted(sample.throttle_reasons)
    fields["missing"] = dict(sample.missing)
    return fields


def from_json(label: str, fields: Any, at_seconds: float) -> Sample:
    """What an agent sent, read at about that time. ValueError if it is not a sample."""
    try:
        limits = fields["limits"]
        reasons = fields["throttle_reasons"]
        missing = {name: why for name, why in fields["missing"].items() if name in READINGS and why in get_args(Why)}
        state = fields["state"]
        if state != "ok" and state not in get_args(Why):
            raise ValueError(f"no such state: {str(state)[:40]}")
        return Sample(
            label,
            at_seconds - max(0.0, _number(fields["age_seconds"]) or 0.0),
            "simulated" if fields["source"] == "simulated" else "measured",
            state,
            str(fields["detail"])[:TEXT_CHARS],
            limits=None if limits is None else _limits(limits),
            throttle_reasons=None if reasons is None else frozenset(str(reason)[:40] for reason in reasons[:32]),
            persistence_mode=None if fields["persistence_mode"] is None else bool(fields["persistence_mode"]),
            missing=missing,
            **{name: _number(fields[name]) for name in NUMBERS},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a sample: {error!r}"[:TEXT_CHARS]) from None


NUMBERS = ("energy_joules", "power_watts", "instant_power_watts", "sm_clock_mhz", "temperature_celsius")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a reading must be a finite number")
    return float(value)


def _limits(fields: Mapping[str, Any]) -> Limits:
    values = {name: _number(fields[name]) for name in Limits._fields}
    if any(values[name] is None for name in ("requested_watts", "lowest_watts", "highest_watts")):
        raise ValueError("limits without a request or a range")
    return Limits(**cast("dict[str, Any]", values))
