"""One look at a device: what is there, what is not and why, and the same over a wire."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from backends.power.device import Limits
from backends.power.sample import READINGS, failed, from_json, take, to_json
from tests.native.devices import FakeDevice


def test_everything_is_read() -> None:
    sample = take("gpu", FakeDevice())
    assert (sample.device, sample.source, sample.state, sample.missing) == ("gpu", "measured", "ok", {})
    assert (sample.energy_joules, sample.power_watts, sample.instant_power_watts) == (100.0, 300.0, 310.0)
    assert sample.limits == Limits(700, 700, 700, 200, 700)
    assert sample.binding is True and sample.persistence_mode is True


def test_what_is_missing_is_none_and_says_why() -> None:
    sample = take("gpu", FakeDevice(faults={"temperature_celsius": "no_permission", "throttle_reasons": "no_data"}))
    assert sample.state == "ok"
    assert sample.temperature_celsius is None and sample.throttle_reasons is None and sample.binding is None
    assert sample.missing == {"temperature_celsius": "no_permission", "throttle_reasons": "no_data"}


def test_a_reading_outside_the_capabilities_is_not_asked_for() -> None:
    device = FakeDevice(capabilities=frozenset(READINGS) - {"temperature_celsius"})
    device.temperature_celsius = lambda: pytest.fail("it was asked")  # type: ignore[method-assign]
    assert take("gpu", device).missing == {"temperature_celsius": "not_supported"}


@pytest.mark.parametrize("why", ["absent", "reset", "lost", "unreachable", "hanging"])
def test_a_fault_of_the_whole_device_is_its_state_and_never_a_zero(why: str) -> None:
    sample = take("gpu", FakeDevice(faults={"power_watts": why}))
    assert sample.state == why and sample.detail == "as the test wants"
    assert {getattr(sample, name) for name in READINGS} == {None}
    assert set(sample.missing.values()) == {why} and set(sample.missing) == set(READINGS)


def test_nothing_to_be_had_is_the_devices_own_state() -> None:
    sample = take("gpu", FakeDevice(faults=dict.fromkeys(READINGS, "no_permission")))
    assert sample.state == "no_permission"


@pytest.mark.parametrize(
    "sample",
    [
        take("gpu", FakeDevice(faults={"limits": "not_supported"})),
        take("gpu", FakeDevice()),
        failed("gpu", "simulated", "lost", "gone"),
    ],
)
def test_it_comes_over_a_wire_as_it_was(sample: Any) -> None:
    wire = json.loads(json.dumps(to_json(sample, sample.at_seconds + 0.25)))
    assert from_json("gpu", wire, 1000.0) == sample._replace(at_seconds=999.75)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy_joules", "12"),
        ("energy_joules", math.nan),
        ("power_watts", True),
        ("limits", {"requested_watts": 1.0}),
        ("limits", {**Limits(1, 1, 1, 1, 1)._asdict(), "requested_watts": None}),
        ("state", "fine"),
        ("missing", []),
        ("throttle_reasons", 3),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused(name: str, value: Any) -> None:
    wire = to_json(take("gpu", FakeDevice()), 0.0)
    with pytest.raises(ValueError, match=r"finite number|not a sample|no such state|limits without"):
        from_json("gpu", {**wire, name: value}, 0.0)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sample"):
        from_json("gpu", ["a"], 0.0)
