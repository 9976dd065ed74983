"""The real pynvml against a driver of ours, each test in a process of its own: readings, states, and coming back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.native.nvml import NO_PERMISSION, NOT_SUPPORTED, FakeDriver, uuid

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from backends.power.device import Unavailable
from backends.power.nvml import NvmlDevice, uuids
from backends.power.sample import take, to_json

script = Path(os.environ["FAKE_NVML_DIR"]) / "script"

def act(*lines):
    new = script.with_name("script.next")
    new.write_text("".join(line + "\\n" for line in lines))
    new.rename(script)

def wait(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "never happened"
        time.sleep(0.005)
    return found

def say(value):
    print(json.dumps(value))

def why(function):
    try:
        function()
    except Unavailable as unavailable:
        return unavailable.why
    return "ok"
"""


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "driver", "gpus 3", "card 0 draw_watts 650")


def run(driver: FakeDriver, code: str) -> Any:
    """What the code says, in a process that sees the driver."""
    return driver.run(PREAMBLE + code)


def test_everything_is_read(driver: FakeDriver) -> None:
    sample = run(driver, 'say(to_json(take("0", NvmlDevice("0")), time.monotonic()))')
    assert sample["state"] == "ok" and sample["missing"] == {}
    assert sample["energy_joules"] == pytest.approx(123456.789, abs=100)
    assert sample["power_watts"] == sample["instant_power_watts"] == 650.0
    assert list(sample["limits"].values()) == [700.0, 700.0, 700.0, 200.0, 700.0]
    assert (sample["sm_clock_mhz"], sample["temperature_celsius"], sample["throttle_reasons"]) == (1980.0, 47.0, [])
    assert sample["persistence_mode"] is True


def test_the_counter_moves_by_what_is_drawn(driver: FakeDriver) -> None:
    code = """
device = NvmlDevice("0")
first = device.energy_joules()
begun = wait(lambda: device.energy_joules() > first and time.monotonic())
second = device.energy_joules()
wait(lambda: device.energy_joules() >= second + 650)
say(time.monotonic() - begun)
"""
    assert run(driver, code) > 0.8  # 650 J at 650 W, in ticks of 65 J


@pytest.mark.parametrize("name", [uuid(1), "1", "00000000:3C:00.0", "0000:3c:00.0"])
def test_a_gpu_is_found_by_each_of_its_names_and_no_other_is_touched(driver: FakeDriver, name: str) -> None:
    code = f'device = NvmlDevice("{name}"); device.set_limit_watts(300); take("x", device); say(device.identity)'
    assert run(driver, code) == uuid(1)
    assert driver.card(1).limit_watts == 300.0
    assert driver.card(0).touched == driver.card(2).touched == 0


def test_all_cards_are_listed_without_touching_them(driver: FakeDriver) -> None:
    assert run(driver, "say(uuids())") == [uuid(0), uuid(1), uuid(2)]
    assert driver.card(0).touched == 0


@pytest.mark.parametrize("name", [uuid(7), "7", "0000:7f:00.0"])
def test_no_such_card_is_absent(driver: FakeDriver, name: str) -> None:
    assert run(driver, f'say(take("x", NvmlDevice("{name}")).state)') == "absent"


def test_no_driver_is_absent(driver: FakeDriver) -> None:
    driver.script("driver gone")
    code = """
sample = take("0", NvmlDevice("0"))
say([sample.state, sample.energy_joules, why(uuids)])
"""
    assert run(driver, code) == ["absent", None, "absent"]


def test_what_a_card_cannot_is_not_supported_and_not_in_its_capabilities(driver: FakeDriver) -> None:
    driver.add(f"card 0 fail energy {NOT_SUPPORTED}")
    driver.add(f"card 0 fail field {NOT_SUPPORTED}")
    code = """
device = NvmlDevice("0")
sample = take("0", device)
say([sample.state, sample.energy_joules, dict(sample.missing), sorted(device.capabilities), device.can_set_limit])
"""
    state, joules, missing, capabilities, can_set = run(driver, code)
    assert (state, joules, can_set) == ("ok", None, True)
    assert missing == {"energy_joules": "not_supported", "instant_power_watts": "not_supported"}
    assert "energy_joules" not in capabilities and "power_watts" in capabilities


def test_a_card_without_limits_cannot_be_set(driver: FakeDriver) -> None:
    driver.add(f"card 0 fail limit {NOT_SUPPORTED}")
    code = 'device = NvmlDevice("0"); device.open(); say([device.can_set_limit, "limits" in device.capabilities])'
    assert run(driver, code) == [False, False]


def test_no_permission_says_the_way_out(driver: FakeDriver) -> None:
    driver.add(f"card 0 fail set_limit {NO_PERMISSION}")
    driver.add(f"card 0 fail lock_clocks {NO_PERMISSION}")
    code = """
device = NvmlDevice("0")
try:
    device.set_limit_watts(300)
except Unavailable as refused:
    say([refused.why, refused.detail, why(lambda: device.lock_sm_clock_mhz(900, 1200)), take("0", device).state])
"""
    reason, detail, clock, state = run(driver, code)
    assert (reason, clock, state) == ("no_permission", "no_permission", "ok")
    assert "joulegate agent --actuate" in detail and "zeusd" in detail


def test_one_reading_that_has_no_value_is_not_a_lost_card(driver: FakeDriver) -> None:
    driver.add("card 0 fail temperature 21")
    sample = run(driver, 'say(to_json(take("0", NvmlDevice("0")), 0.0))')
    assert sample["state"] == "ok" and sample["missing"] == {"temperature_celsius": "no_data"}


def test_a_limit_settles_and_binds(driver: FakeDriver) -> None:
    driver.add("card 0 settle_ms 400")
    code = """
device = NvmlDevice("0")
device.set_limit_watts(400)
at_once = device.limits()
wait(lambda: device.limits().enforced_watts == 400)
sample = take("0", device)
say([at_once.requested_watts, at_once.enforced_watts, sample.power_watts, sample.binding, sample.sm_clock_mhz])
"""
    requested, enforced, power, binding, clock = run(driver, code)
    assert requested == 400.0 < enforced <= 700.0
    assert (power, binding) == (400.0, True) and clock < 1980


def test_the_host_may_enforce_less_than_was_asked_for(driver: FakeDriver) -> None:
    driver.add("card 0 host_limit_watts 500")
    limits = run(driver, 'say(NvmlDevice("0").limits()._asdict())')
    assert (limits["requested_watts"], limits["enforced_watts"]) == (700.0, 500.0)


@pytest.mark.parametrize("watts", [199, 701, 0, -5])
def test_a_limit_out_of_range_is_refused_before_the_driver_is_asked(driver: FakeDriver, watts: int) -> None:
    code = f"""
try:
    NvmlDevice("0").set_limit_watts({watts})
except ValueError as error:
    say(str(error))
"""
    assert "from 200 to 700 W" in run(driver, code)
    assert driver.card().sets == 0


def test_clocks_are_locked_and_freed(driver: FakeDriver) -> None:
    code = """
device = NvmlDevice("0")
device.lock_sm_clock_mhz(1000, 1200)
locked = device.sm_clock_mhz()
device.unlock_sm_clock()
say([locked, device.sm_clock_mhz()])
"""
    assert run(driver, code) == [1200.0, 1980.0]


def test_a_lost_card_is_a_state_and_harms_no_other_and_comes_back(driver: FakeDriver) -> None:
    code = """
device, other = NvmlDevice("0"), NvmlDevice("1")
device.open(), other.open()
act("gpus 3", "card 0 lost")
lost = take("0", device)
others = [take("1", other).state for _ in range(20)]
again = take("0", device)
act("gpus 3")
back = wait(lambda: (found := take("0", device)).state == "ok" and found)
say([lost.state, lost.energy_joules, set(others) == {"ok"}, again.state, back.power_watts, take("1", other).state])
"""
    assert run(driver, code) == ["lost", None, True, "lost", 300.0, "ok"]


def test_a_driver_that_is_reloaded_is_reached_again(driver: FakeDriver) -> None:
    code = """
device = NvmlDevice("0")
device.set_limit_watts(300)
before, generation = take("0", device), device.generation
act("gpus 3", "driver gone")
gone = take("0", device)
act("gpus 3", "driver epoch 2")
after = wait(lambda: (found := take("0", device)).state == "ok" and found)
say([gone.state, gone.energy_joules, after.energy_joules < before.energy_joules, after.limits.requested_watts,
     device.generation > generation])
"""
    assert run(driver, code) == ["reset", None, True, 700.0, True]


def test_a_card_that_is_gone_is_tried_again_after_waits_that_double_to_half_a_minute(driver: FakeDriver) -> None:
    driver.script("driver gone")
    code = """
from backends.power.nvml_session import NvmlSession
import pynvml
now, tries = [0.0], []
init = pynvml.nvmlInit
pynvml.nvmlInit = lambda: (tries.append(now[0]), init())
session = NvmlSession(lambda: now[0])
while now[0] < 200:
    why(lambda: session.ensure("x"))
    now[0] += 0.125
say(tries)
"""
    assert run(driver, code) == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5, 151.5, 181.5]


def test_a_call_that_hangs_in_the_driver_delays_no_other_card(driver: FakeDriver) -> None:
    code = """
import asyncio
from backends.power.sampler import Sampler

async def main():
    heard = []
    sampler = Sampler({"0": NvmlDevice("0"), "1": NvmlDevice("1")}, 0.1, heard.extend, 0.15)
    sampler.start()
    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
    def count(label, state):
        return sum((sample.device, sample.state) == (label, state) for sample in heard)
    await until(lambda: count("0", "ok") and count("1", "ok"))
    act("gpus 3", "card 0 hang power")
    await until(lambda: count("0", "hanging"))
    seen = count("1", "ok")
    await until(lambda: count("1", "ok") > seen + 3)
    act("gpus 3")
    read = count("0", "ok")
    await until(lambda: count("0", "ok") > read)
    await sampler.close()
    say(sampler.threads)

asyncio.run(main())
"""
    assert run(driver, code) == 2


def test_a_call_that_hangs_does_not_keep_the_process_from_ending(driver: FakeDriver) -> None:
    driver.add("card 0 hang power")
    code = """
import asyncio
from backends.power.threads import DeviceThread

async def main():
    device = NvmlDevice("0")
    thread = DeviceThread("0")
    try:
        await thread.call("power_watts", device.power_watts, 0.1)
    except Unavailable as hanging:
        say(hanging.why)

asyncio.run(main())
"""
    assert run(driver, code) == "hanging"
