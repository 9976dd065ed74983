"""Limits moved and put back: three numbers, somebody else's hand, what fails, and the mode that touches nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.power.actuator import Actuator, Mode
from backends.power.cap import Outcome
from backends.power.device import HeldElsewhere
from backends.power.lease import Lease, LeaseFault, leases, new_record, open_folder
from backends.power.sample import take
from tests.e2e.harness import run, until
from tests.native.devices import FakeDevice


class Acting:
    """An actuator of some fake cards, and what it said."""

    def __init__(self, folder: Path, mode: Mode = "actuate", **devices: FakeDevice) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.devices = devices
        self.actuator = Actuator(devices, mode, folder, self.said.append, watchdog=False)

    async def limit(self, watts: float, label: str = "gpu") -> Outcome:
        return await self.actuator.set_limit_watts(label, watts)

    def see(self, label: str = "gpu") -> None:
        self.actuator.see(take(label, self.devices[label]))


@contextlib.asynccontextmanager
async def acting(tmp_path: Path, mode: Mode = "actuate", **devices: FakeDevice) -> AsyncIterator[Acting]:
    stage = Acting(tmp_path / "leases", mode, **(devices or {"gpu": FakeDevice()}))
    await stage.actuator.start()
    try:
        yield stage
    finally:
        await stage.actuator.close()


def test_requested_clamped_and_applied_are_three_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice(step_watts=7.0)
        async with acting(tmp_path, gpu=device) as stage:
            outcome = await stage.limit(150.0)
            assert outcome[:6] == ("gpu", "applied", 150.0, 200.0, 196.0, 196.0)
            assert "made 196 W of 200 W" in outcome.detail

    run(main)


def test_observe_touches_nothing_and_says_what_it_would_do(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, "observe", gpu=device) as stage:
            outcome = await stage.limit(150.0)
            assert outcome[:5] == ("gpu", "observed", 150.0, 200.0, 700.0)
            assert (await stage.actuator.lock_sm_clock_mhz("gpu", (900.0, 1200.0))).state == "observed"
            assert await stage.actuator.restore("gpu") is None
        assert (device.sets, device.clock) == ([], None) and not stage.folder.exists()

    run(main)


def test_observe_says_that_an_ended_process_left_a_limit(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice(limit_watts=350.0)
        orphan(tmp_path / "leases")
        async with acting(tmp_path, "observe", gpu=device) as stage:
            assert "joulegate power restore" in stage.said[0]
        assert device.sets == [] and len(leases(stage.folder)) == 1

    run(main)


def orphan(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    lease = Lease(folder, "fake")
    lease.acquire()
    record = new_record("fake", "gpu", {"kind": "unknown"}, lease.token)
    lease.write(record._replace(snapshot_watts=500.0, ours_watts=(350.0,)))
    lease.release()


def test_the_lease_is_on_disk_before_the_card_is_touched(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice(limit_watts=600.0)
        seen: list[Any] = []
        put = device.set_limit_watts

        def seeing(watts: float) -> None:
            seen.append(Lease(tmp_path / "leases", "fake").read())
            put(watts)

        device.set_limit_watts = seeing  # type: ignore[method-assign]
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            await stage.limit(300.0)
        found = [(record.snapshot_watts, record.ours_watts) for record in seen]
        assert found == [(600.0, (600.0, 400.0)), (600.0, (400.0, 300.0)), (600.0, (400.0, 300.0))]
        assert device.limit_watts == 600.0, "what was found, and not the default"
        assert leases(stage.folder) == []

    run(main)


def test_an_orphan_is_adopted_before_the_first_change(tmp_path: Path) -> None:
    """Its device could not be opened at the start; now the card is here, and what was found then is what counts."""

    async def main() -> None:
        orphan(tmp_path / "leases")
        device = FakeDevice(limit_watts=350.0)
        async with acting(tmp_path, gpu=device) as stage:
            assert (await stage.limit(300.0)).state == "applied"
            assert device.sets == [500.0, 300.0]
            assert stage.actuator.state()["gpu"]["snapshot_watts"] == 500.0
        assert device.limit_watts == 500.0

    run(main)


@pytest.mark.parametrize("by", ["a sample", "the next change"])
def test_somebody_else_moves_the_limit_and_we_yield(tmp_path: Path, by: str) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            stage.see()
            device.limit_watts = 600.0
            if by == "a sample":
                stage.see()
                await until(lambda: any("yielded" in text for text in stage.said), "it says so")
            outcome = await stage.limit(300.0)
            assert outcome.state == "yielded" and "somebody else set 600 W where 400 W was ours" in outcome.detail
            assert device.sets == [400.0] and leases(stage.folder) == []
            stage.actuator.resume("gpu")
            assert (await stage.limit(300.0)).state == "applied"
            assert stage.actuator.state()["gpu"]["snapshot_watts"] == 600.0
        assert device.limit_watts == 600.0

    run(main)


def test_a_sample_from_before_the_change_is_no_sign_of_anybody(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            before = take("gpu", device)
            await stage.limit(400.0)
            stage.actuator.see(before)
            assert not stage.actuator._tasks
            assert (await stage.limit(300.0)).state == "applied"

    run(main)


def test_a_driver_that_was_reloaded_is_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            device.limit_watts, device.now_generation = 700.0, 1
            outcome = await stage.limit(400.0)
            assert outcome.state == "applied" and "dropped the limit of 400 W" in outcome.detail
            assert device.limit_watts == 400.0

    run(main)


def test_no_permission_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice(faults={"set_limit": "no_permission"})
        async with acting(tmp_path, gpu=device) as stage:
            outcome = await stage.limit(400.0)
            assert outcome.state == "failed" and "no_permission" in outcome.detail
            assert leases(stage.folder) == [] and not Lease(stage.folder, "fake").is_locked()
            device.faults = {}
            assert (await stage.limit(400.0)).state == "applied"

    run(main)


def test_a_limit_stays_ours_when_a_later_change_fails(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            device.faults = {"set_limit": "lost"}
            assert (await stage.limit(300.0)).state == "failed"
            assert Lease(stage.folder, "fake").is_locked()
            device.faults = {}
        assert device.limit_watts == 700.0

    run(main)


def test_a_change_cut_off_in_the_middle_is_nobody_elses(tmp_path: Path) -> None:
    """The driver has taken the limit, and then could not be read."""

    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            put = device.set_limit_watts

            def lost_after(watts: float) -> None:
                put(watts)
                device.faults = {"limits": "lost"}

            device.set_limit_watts = lost_after  # type: ignore[method-assign]
            assert (await stage.limit(300.0)).state == "failed"
            device.set_limit_watts, device.faults = put, {}  # type: ignore[method-assign]
            stage.see()
            assert (await stage.limit(350.0)).state == "applied"
            assert not any("yielded" in text for text in stage.said)
        assert device.limit_watts == 700.0

    run(main)


def test_a_clock_that_may_not_be_locked_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice(faults={"sm_clock_lock": "no_permission"})
        async with acting(tmp_path, gpu=device) as stage:
            assert (await stage.actuator.lock_sm_clock_mhz("gpu", (900.0, 1200.0))).state == "failed"
            assert leases(stage.folder) == []
            await stage.limit(400.0)
            assert (await stage.actuator.lock_sm_clock_mhz("gpu", (900.0, 1200.0))).state == "failed"
        assert device.limit_watts == 700.0 and leases(stage.folder) == []

    run(main)


def test_an_orphaned_clock_is_not_forgotten_when_it_cannot_be_freed(tmp_path: Path) -> None:
    async def main() -> None:
        folder = open_folder(tmp_path / "leases")
        lease = Lease(folder, "fake")
        lease.acquire()
        lease.write(new_record("fake", "gpu", {"kind": "unknown"}, lease.token)._replace(clock_locked=True))
        lease.release()
        device = FakeDevice(clock=(900.0, 1200.0), faults={"sm_clock_lock": "lost"})
        async with acting(tmp_path, gpu=device) as stage:
            assert (await stage.limit(400.0)).state == "failed"
            assert len(leases(folder)) == 1 and device.sets == []
            device.faults = {}
            assert (await stage.limit(400.0)).state == "applied"
        assert device.clock is None and leases(folder) == []

    run(main)


def test_two_on_one_host_and_one_card(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as first:
            await first.limit(400.0)
            async with acting(tmp_path, gpu=device) as second:
                outcome = await second.limit(300.0)
                assert outcome.state == "held_elsewhere" and "sets its limit" in outcome.detail
            assert device.sets == [400.0]
        async with acting(tmp_path, gpu=device) as second:
            assert (await second.limit(300.0)).state == "applied"

    run(main)


def test_a_card_that_another_host_holds_is_left_to_it(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()

        def refuse(watts: float) -> None:
            raise HeldElsewhere("set_limit", "gateway-2 sets the limit")

        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)
            device.set_limit_watts = refuse  # type: ignore[method-assign]
            assert (await stage.limit(300.0)).state == "held_elsewhere"
            done = await stage.actuator.restore("gpu")
            assert done is not None and done.state == "left_alone"
            assert leases(stage.folder) == []

    run(main)


def test_a_lost_lease_is_put_back_and_said(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            await stage.limit(400.0)

            def lost() -> None:
                raise LeaseFault("somebody else's")

            device.renew = lost  # type: ignore[method-assign]
            await stage.actuator._renew_one(stage.actuator._caps["gpu"])
            assert "the lease was lost: somebody else's; restored" in stage.said[-1]
            assert device.limit_watts == 700.0 and leases(stage.folder) == []

    run(main)


def test_the_clock_is_locked_and_freed(tmp_path: Path) -> None:
    async def main() -> None:
        device = FakeDevice()
        async with acting(tmp_path, gpu=device) as stage:
            assert (await stage.actuator.lock_sm_clock_mhz("gpu", (900.0, 1200.0))).state == "applied"
            found = [device.clock]
            await stage.actuator.lock_sm_clock_mhz("gpu", None)
            found.append(device.clock)
            await stage.actuator.lock_sm_clock_mhz("gpu", (900.0, 1000.0))
            found.append(device.clock)
        assert [*found, device.clock] == [(900.0, 1200.0), None, (900.0, 1000.0), None]
        assert device.sets == []

    run(main)


def test_cards_that_work_in_step_move_together_and_a_hanging_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.power.actuator.SET_SECONDS", 0.2)

    async def main() -> None:
        devices = {name: FakeDevice(name) for name in ("one", "two", "stuck")}

        def hang(watts: float) -> None:
            devices["stuck"].go_on.wait()

        devices["stuck"].set_limit_watts = hang  # type: ignore[method-assign]
        devices["stuck"].go_on.clear()
        async with acting(tmp_path, "actuate", **devices) as stage:
            outcomes = await stage.actuator.set_together(list(devices), 400.0)
            assert [outcome.state for outcome in outcomes] == ["applied", "applied", "failed"]
            assert "hanging" in outcomes[2].detail
            assert "hanging" in (await stage.limit(300.0, "stuck")).detail
            devices["stuck"].go_on.set()
        assert devices["one"].limit_watts == devices["two"].limit_watts == 700.0

    run(main)
