"""A process that sets limits ends in every way there is, and each time the card is as it was found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.power.lease import leases
from tests.native.holding import Holder
from tests.native.nvml import FakeDriver, uuid
from tests.vllm.children import wait_until

WAIT_SECONDS = 30.0
"""The watchdog has two seconds; a loaded machine gets more. bench/power_sampling.py measures it."""


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "driver", "gpus 2", "card 0 draw_watts 650")


@pytest.fixture
def hold(driver: FakeDriver, tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def start(*options: str, gpu: str = "0") -> Holder:
        started.append(Holder(driver, tmp_path / "leases", *options, gpu=gpu))
        return started[-1]

    yield start
    for holder in started:
        holder.leave()


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def orphans(tmp_path: Path) -> list[str]:
    return [lease.file.stem for lease in leases(tmp_path / "leases") if not lease.is_locked()]


def wait_restored(driver: FakeDriver, watts: float = 700.0) -> None:
    wait_until(lambda: driver.card().limit_watts == watts, WAIT_SECONDS, "the limit is as it was found")


def wait_no_leases(tmp_path: Path) -> None:
    wait_until(lambda: leases(tmp_path / "leases") == [], WAIT_SECONDS, "the lease is removed")


def test_kill_9_of_the_gateway(driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path) -> None:
    holder = hold()
    assert holder.ask("limit 400")["applied_watts"] == 400.0
    assert holder.ask("limit 300")["applied_watts"] == 300.0
    assert holder.ask("clock 1000 1200")["state"] == "applied"
    assert driver.card().limit_watts == 300.0 and driver.card().lock_high == 1200
    assert holder.end(signal.SIGKILL) == -signal.SIGKILL
    wait_restored(driver)
    wait_no_leases(tmp_path)
    assert driver.card().lock_high == 0
    assert driver.card(1).touched == 0


def test_what_was_found_is_restored_and_not_the_default(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    driver.run("from backends.power.nvml import NvmlDevice; NvmlDevice('0').set_limit_watts(500); print(0)")
    holder = hold()
    holder.ask("limit 300")
    holder.end(signal.SIGKILL)
    wait_restored(driver, 500.0)


def test_sigterm_restores_before_the_process_ends(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    holder = hold()
    holder.ask("limit 300")
    watchdog = holder.watchdog()
    assert holder.end(signal.SIGTERM) == 0
    assert [done["state"] for done in holder.answer()] == ["restored"]
    assert driver.card().limit_watts == 700.0 and leases(tmp_path / "leases") == []
    wait_until(lambda: not lives(watchdog), WAIT_SECONDS, "the watchdog has gone")


def test_the_watchdog_outlives_signals_to_the_group(driver: FakeDriver, hold: Callable[..., Holder]) -> None:
    """Ctrl-C, or a service manager that ends every process at once."""
    holder = hold()
    holder.ask("limit 300")
    watchdog = holder.watchdog()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(watchdog, number)
    assert os.getsid(watchdog) != os.getsid(holder.process.pid)
    assert holder.ask("limit 350")["state"] == "applied"
    holder.end(signal.SIGKILL)
    wait_restored(driver)


def test_a_watchdog_that_was_killed_is_replaced(driver: FakeDriver, hold: Callable[..., Holder]) -> None:
    holder = hold()
    holder.ask("limit 300")
    first = holder.watchdog()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not lives(first), WAIT_SECONDS, "it has ended")
    assert driver.card().limit_watts == 300.0
    assert holder.ask("limit 350")["state"] == "applied"
    assert holder.watchdog() != first
    holder.end(signal.SIGKILL)
    wait_restored(driver)


def test_both_killed_leave_an_orphan_that_the_next_start_restores(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    holder = hold()
    holder.ask("limit 300")
    watchdog = holder.watchdog()
    os.kill(holder.process.pid, signal.SIGSTOP)  # so that it cannot start another
    os.kill(watchdog, signal.SIGKILL)
    holder.end(signal.SIGKILL)
    wait_until(lambda: orphans(tmp_path) == [uuid(0)], WAIT_SECONDS, "an orphan")
    assert driver.card().limit_watts == 300.0
    again = hold()
    assert driver.card().limit_watts == 700.0
    assert "0: left by an earlier process: restored" in again.said[0]
    assert again.ask("limit 400")["state"] == "applied"


def test_an_orphan_is_restored_without_a_gateway(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    holder = hold("no")
    holder.ask("limit 300")
    running = restore(driver, tmp_path)
    assert running.returncode == 1 and "held" in running.stdout and driver.card().limit_watts == 300.0
    holder.end(signal.SIGKILL)
    assert driver.card().limit_watts == 300.0
    done = restore(driver, tmp_path)
    assert done.returncode == 0 and "0: restored 700 W: from 300 W" in done.stdout
    assert driver.card().limit_watts == 700.0
    assert "nothing to restore" in restore(driver, tmp_path).stdout


def restore(driver: FakeDriver, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy.cli", "power", "restore", "--lease-dir", str(tmp_path / "leases")]
    environ = {**os.environ, **driver.environment}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def test_one_writer_and_no_gap_while_the_watchdog_restores(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    first, second = hold(), hold()
    assert first.ask("limit 300")["state"] == "applied"
    refused = second.ask("limit 400")
    assert refused["state"] == "held_elsewhere" and str(first.process.pid) in refused["detail"]
    assert driver.card().limit_watts == 300.0
    driver.add("card 0 hang set_limit")
    first.end(signal.SIGKILL)  # its watchdog is now in the middle of restoring, and holds the lock
    assert second.ask("limit 400")["state"] == "held_elsewhere"
    driver.script("gpus 2", "card 0 draw_watts 650")
    wait_restored(driver)
    wait_until(lambda: second.ask("limit 400")["state"] == "applied", WAIT_SECONDS, "the other gets the card")


def test_a_lost_card_is_restored_when_it_is_back(driver: FakeDriver, hold: Callable[..., Holder]) -> None:
    holder = hold()
    holder.ask("limit 300")
    driver.add("card 0 lost")
    holder.end(signal.SIGKILL)
    lines = driver.lines[:-1]
    driver.script(*lines)
    wait_restored(driver)


def test_a_card_that_hangs_keeps_no_other_from_being_restored(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    driver.run("from backends.power.nvml import NvmlDevice; NvmlDevice('1').set_limit_watts(600); print(0)")
    holder = hold("yes", gpu="0,1")
    assert holder.ask("limit 300")["state"] == "applied"
    assert driver.card(0).limit_watts == driver.card(1).limit_watts == 300.0
    driver.add("card 0 hang set_limit")
    holder.end(signal.SIGKILL)
    wait_until(lambda: driver.card(1).limit_watts == 600.0, WAIT_SECONDS, "the other is restored")
    assert driver.card(0).limit_watts == 300.0
    driver.script("gpus 2")
    wait_restored(driver)


def test_somebody_else_moves_the_limit_and_keeps_it(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    holder = hold()
    holder.ask("limit 300")
    driver.somebody_sets(450.0)
    state = holder.ask("look")
    assert "somebody else set 450 W where 300 W was ours" in state["yielded"]
    assert any("yielded" in text for text in state["said"])
    assert holder.ask("limit 300")["state"] == "yielded"
    assert leases(tmp_path / "leases") == []
    holder.end(signal.SIGKILL)
    assert driver.card().limit_watts == 450.0


def test_somebody_elses_limit_survives_kill_9_too(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    holder = hold()
    holder.ask("limit 300")
    driver.somebody_sets(450.0)
    holder.end(signal.SIGKILL)
    wait_no_leases(tmp_path)
    assert driver.card().limit_watts == 450.0


def test_without_permission_nothing_is_left_behind(
    driver: FakeDriver, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    driver.add("card 0 fail set_limit 4")
    holder = hold()
    refused = holder.ask("limit 300")
    assert refused["state"] == "failed" and "run as root" in refused["detail"]
    assert leases(tmp_path / "leases") == [] and driver.card().sets == 0
