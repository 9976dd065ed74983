"""Many devices read by few threads: one that hangs, one that fails, a counter that begins again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from backends.power.sample import Sample
from backends.power.sampler import Sampler
from tests.e2e.harness import run, until
from tests.native.devices import FakeDevice


class Heard:
    """What the callback was given."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.threads: set[int] = set()

    def __call__(self, samples: list[Sample]) -> None:
        self.threads.add(threading.get_ident())
        self.samples += samples

    def of(self, label: str, state: str = "ok") -> list[Sample]:
        return [sample for sample in self.samples if (sample.device, sample.state) == (label, state)]


@contextlib.asynccontextmanager
async def sampling(heard: Heard, *, hang_seconds: float = 0.5, **devices: FakeDevice) -> AsyncIterator[Sampler]:
    sampler = Sampler(devices, 0.1, heard, hang_seconds)
    sampler.start()
    try:
        yield sampler
    finally:
        for device in devices.values():
            device.go_on.set()
        await sampler.close()


def test_devices_are_read_again_and_again_and_handed_over_on_the_loop() -> None:
    async def main() -> None:
        heard, one, two = Heard(), FakeDevice(), FakeDevice()
        async with sampling(heard, one=one, two=two) as sampler:
            await until(lambda: len(heard.of("one")) > 2 and len(heard.of("two")) > 2, "three samples of each")
            assert sampler.threads == 1
        assert heard.threads == {threading.get_ident()}
        times = [sample.at_seconds for sample in heard.of("one")]
        assert times == sorted(times) and len(set(times)) == len(times)
        assert not [thread for thread in threading.enumerate() if thread.name == "power one"]

    run(main)


def test_a_device_that_hangs_delays_nobody_else_and_is_shown() -> None:
    async def main() -> None:
        heard, stuck, fine = Heard(), FakeDevice(), FakeDevice()
        stuck.go_on.clear()
        async with sampling(heard, hang_seconds=0.1, stuck=stuck, fine=fine) as sampler:
            await until(lambda: len(heard.of("fine")) > 3, "the other is read on")
            await until(lambda: bool(heard.of("stuck", "hanging")), "it is shown as hanging")
            assert not heard.of("stuck") and sampler.threads == 2
            assert heard.of("stuck", "hanging")[0].energy_joules is None
            stuck.go_on.set()
            await until(lambda: len(heard.of("stuck")) > 1, "it comes back by itself")
            stuck.go_on.clear()
            shown = len(heard.of("stuck", "hanging"))
            await until(lambda: len(heard.of("stuck", "hanging")) > shown, "it is shown again")
            assert sampler.threads == 2, "it stays apart: nobody waits for it a second time"

    run(main)


def test_several_that_hang_one_after_the_other() -> None:
    async def main() -> None:
        heard = Heard()
        devices = {f"d{number}": FakeDevice() for number in range(4)}
        for label in ("d0", "d1", "d3"):
            devices[label].go_on.clear()
        async with sampling(heard, hang_seconds=0.05, **devices) as sampler:
            await until(lambda: len(heard.of("d2")) > 2, "the one that works is read")
            for label in ("d0", "d1", "d3"):
                await until(lambda label=label: bool(heard.of(label, "hanging")), f"{label} is shown")  # type: ignore[misc]
            assert sampler.threads == 4

    run(main)


def test_a_device_that_raises_anything_at_all_hurts_nobody() -> None:
    async def main() -> None:
        heard, broken, fine = Heard(), FakeDevice(), FakeDevice()
        broken.energy_joules = lambda: 1 / 0  # type: ignore[method-assign]
        async with sampling(heard, broken=broken, fine=fine):
            await until(lambda: len(heard.of("fine")) > 1, "the other is read")
            assert "ZeroDivisionError" in heard.of("broken", "no_data")[0].detail

    run(main)


def test_a_counter_that_goes_back_is_a_reset_once() -> None:
    async def main() -> None:
        heard, device = Heard(), FakeDevice(joules=5000.0)
        async with sampling(heard, gpu=device):
            await until(lambda: bool(heard.of("gpu")), "a first sample")
            device.joules = 3.0
            await until(lambda: bool(heard.of("gpu", "reset")), "the reset")
            seen = len(heard.of("gpu"))
            await until(lambda: len(heard.of("gpu")) > seen, "samples after it")
        (reset,) = heard.of("gpu", "reset")
        assert reset.energy_joules == 3.0 and "5000 J to 3 J" in reset.detail

    run(main)


def test_a_lost_device_says_so_and_comes_back() -> None:
    async def main() -> None:
        heard, device = Heard(), FakeDevice(faults={"energy_joules": "lost"})
        async with sampling(heard, gpu=device):
            await until(lambda: bool(heard.of("gpu", "lost")), "it is lost")
            device.faults = {}
            await until(lambda: bool(heard.of("gpu")), "it is back")

    run(main)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.5, -1.0, float("nan")])
def test_a_period_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0\.1 to 1 s"):
        Sampler({}, seconds, lambda samples: None)


def test_too_many_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        Sampler({str(number): FakeDevice() for number in range(257)}, 0.1, lambda samples: None)
