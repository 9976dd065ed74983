"""A twin's card over HTTP: it reads as the twin's own device does, always says simulated, and takes a limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.power.actuator import Actuator
from backends.power.opening import Where, open_device, reopen
from backends.power.sample import take
from backends.power.twin_http import TwinHttpDevice
from tests.e2e.harness import run
from tests.e2e.twin_process import Twin
from tests.vllm.children import wait_until

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", "100")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def test_it_is_simulated_and_its_counter_moves(url: str) -> None:
    device = open_device(f"twin:{url}", Where())
    first = take("gpu", device)
    assert (first.source, first.state) == ("simulated", "ok")
    assert first.limits == (700.0, 700.0, 700.0, 200.0, 700.0)
    assert first.missing["temperature_celsius"] == first.missing["persistence_mode"] == "not_supported"
    assert first.energy_joules is not None and first.sm_clock_mhz is not None
    joules = first.energy_joules
    wait_until(lambda: device.energy_joules() > joules, WAIT_SECONDS, "the counter moves")
    wait_until(lambda: take("gpu", device).power_watts is not None, WAIT_SECONDS, "a mean of a second")
    device.close()


def test_a_limit_is_set_clamped_and_put_back(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        device = open_device(f"twin:{url}", Where())
        actuator = Actuator({"gpu": device}, "actuate", tmp_path / "leases", print, watchdog=False)
        await actuator.start()
        outcome = await actuator.set_limit_watts("gpu", 100.0)
        assert outcome[1:5] == ("applied", 100.0, 200.0, 200.0)
        again = reopen(device.spec)
        assert again.limits().requested_watts == 200.0
        again.close()
        (done,) = await actuator.close()
        assert (done.state, device.limits().requested_watts) == ("restored", 700.0)
        device.close()

    run(main)


def test_a_limit_out_of_range_is_refused_by_the_twin(url: str) -> None:
    device = TwinHttpDevice(url)
    with pytest.raises(ValueError, match="from 200 to 700 W"):
        device.set_limit_watts(900.0)
    device.close()


def test_what_is_no_twin_is_absent(url: str) -> None:
    device = TwinHttpDevice(f"{url}/v1")
    sample = take("gpu", device)
    device.close()
    assert (sample.state, sample.source, sample.energy_joules) == ("absent", "simulated", None)


def test_nobody_there_is_unreachable() -> None:
    assert take("gpu", TwinHttpDevice("http://127.0.0.1:1")).state == "unreachable"
