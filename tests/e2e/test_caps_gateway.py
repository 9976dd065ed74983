"""Caps that a gateway decides: carried out, shown, left to others, and put back however the process ends."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from backends.power.lease import leases
from backends.power.twin_http import TwinHttpDevice
from tests.e2e.harness import RunningGateway, gateway, run, until
from tests.e2e.test_control import get
from tests.e2e.twin_process import CALIBRATION, MODEL, Twin
from tests.native.nvml import FakeDriver
from tests.vllm.children import ROOT, Child, joulegate_command, wait_until
from tests.vllm.wire import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_SECONDS = 30.0
"""A cap goes back within 2 s; a loaded machine gets more. docs/energy-caps.md says what was measured."""
TARGETS = {"ttft_seconds_p95": 10.0, "itl_seconds_p95": 1.0, "interval_seconds": 2.0}
BUDGET_WATTS = 400.0
"""A budget is kept at once, whatever there is to do: so the tests need no load."""
ASK = {"model": MODEL, "max_tokens": 20, "ignore_eos": True, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = Twin(tmp_path_factory.mktemp("twin") / "log")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()


def limit_of(url: str) -> float:
    device = TwinHttpDevice(url)
    try:
        return device.limits().requested_watts
    finally:
        device.close()


async def caps(running: RunningGateway) -> dict[str, Any]:
    [told] = (await get(running.control_port, "/admin/caps")).json["engines"].values()
    found: dict[str, Any] = told
    return found


def why(running: RunningGateway) -> str | None:
    controllers = running.app.gateway.scheduler.caps.fleet.controllers
    return next((one.last.why for one in controllers.values() if one.last is not None), None)


def test_a_cap_is_set_on_the_twin_shown_and_put_back(twin: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        power = {"mode": "actuate", "lease_dir": str(tmp_path / "leases")}
        events = {"path": str(tmp_path / "events")}
        table = {**TARGETS, "budget_watts": BUDGET_WATTS}
        async with gateway(twin, log=str(log), power=power, caps=table, event_log=events) as running:
            standings = running.app.gateway.scheduler.caps.fleet.controllers
            await until(lambda: any(one.standing.current_watts == BUDGET_WATTS for one in standings.values()), "a cap")
            desk = running.app.gateway.scheduler.caps
            [sight] = desk.engines.values()
            await until(lambda: sight.cards is not None and sight.cards.limits is not None
                        and sight.cards.limits.enforced == BUDGET_WATTS, "the cap in force")  # fmt: skip
            assert limit_of(twin) == BUDGET_WATTS
            told = await caps(running)
            assert (told["mode"], told["prior_watts"], told["current_watts"]) == ("actuate", 700.0, BUDGET_WATTS)
            assert told["limits_watts"]["requested"] == told["limits_watts"]["enforced"] == BUDGET_WATTS
            assert "400 W for all" in told["decisions"][-1]["words"]
            [device] = told["devices"].values()
            assert device["snapshot_watts"] == 700.0 and device["token"] is not None
            assert (await running.post("/v1/chat/completions", ASK)).status == 200
            text = (await get(running.control_port, "/metrics")).body.decode()
            assert re.search(r'joulegate_cap_watts\{engine="[^"]+",kind="enforced",source="simulated"\} 400\.0', text)
            assert re.search(r'joulegate_cap_watts\{engine="[^"]+",kind="prior",source="simulated"\} 700\.0', text)

    run(main)
    assert limit_of(twin) == 700.0 and leases(tmp_path / "leases") == []
    said = [json.loads(line) for line in log.read_text().splitlines()]
    [done] = [line for line in said if line.get("event") == "cap_set"]
    assert (done["requested"], done["clamped"], done["applied"], done["by"]) == (400.0, 400.0, 400.0, "us")
    assert replayed(tmp_path / "events")


def replayed(path: Path) -> bool:
    """Whether the log leads to the same decisions again, and has one of a cap."""
    from scheduler.eventlog import replay

    with path.open() as file:
        found = list(replay(file))
    names = {type(action).__name__ for _, _, actions, _ in found for action in actions}
    kinds = {type(event).__name__ for _, event, _, _ in found}
    return all(same for *_, same in found) and "SetCap" in names and {"CardsRead", "CapApplied"} <= kinds


def test_observe_decides_and_touches_nothing(twin: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        table = {"budget_watts": BUDGET_WATTS, "interval_seconds": 2.0}
        async with gateway(twin, log=str(log), caps=table) as running:
            await until(lambda: why(running) == "budget", "a decision")
            told = await caps(running)
            assert told["mode"] == "observe" and told["decision"]["watts"] == BUDGET_WATTS
            assert told["decision"]["action"] is None and told["current_watts"] == 700.0
            assert limit_of(twin) == 700.0
            await running.app.energy.tick()

    run(main)
    assert not (tmp_path / "leases").exists()
    decisions = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("event") == "cap_decision"]
    assert [line for line in decisions if line["why"] == "budget" and line["mode"] == "observe"]


def test_actuate_without_targets_is_refused_with_the_keys_name() -> None:
    from proxy.config_file import ConfigError
    from tests.e2e.harness import configuration

    with pytest.raises(ConfigError, match=r"caps\.ttft_seconds_p95.*is needed"):
        configuration("http://127.0.0.1:1", power={"mode": "actuate"})
    with pytest.raises(ConfigError, match=r"caps\.floor_share.*must be from 0\.05 to 1"):
        configuration("http://127.0.0.1:1", caps={"floor_share": 2.0})


# --- a whole process, and a driver ---


class Process(Child):
    """A gateway that sets the limits of two cards of the fake driver, which work for one engine."""

    def __init__(self, twin: str, driver: FakeDriver, folder: Path, actuator: str = "power") -> None:
        path = folder / "gateway.toml"
        self.leases = folder / "leases"
        table = "".join(f"{name} = {value}\n" for name, value in TARGETS.items())
        path.write_text(
            f'[[engines]]\nname = "e"\nurl = "{twin}"\ngpus = ["0", "1"]\nenergy_prior = "{CALIBRATION}"\n'
            f"[listen]\nport = 0\ncontrol_port = 0\n[health]\nprobe_seconds = 0.2\n"
            f'[power]\nmode = "actuate"\nlease_dir = "{self.leases}"\n[caps]\nbudget_watts = 800.0\n'
            f'actuator = "{actuator}"\n{table}'
        )
        environment = {**driver.environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        super().__init__([*joulegate_command(), "serve", "--config", str(path)], folder / "process.log", environment)

    def control(self) -> int:
        found = re.search(r"control plane http://127\.0\.0\.1:(\d+)", self.text())
        assert found is not None
        return int(found[1])

    def caps(self) -> dict[str, Any]:
        told: dict[str, Any] = ask(f"http://127.0.0.1:{self.control()}", "GET", "/admin/caps").json()["engines"]["e"]
        return told


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "driver", "gpus 3", "card 0 draw_watts 650", "card 1 draw_watts 650")


@pytest.fixture
def process(twin: str, driver: FakeDriver, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process(twin, driver, tmp_path))
        wait_limits(driver, 400.0, started[-1])
        return started[-1]

    yield start
    for one in started:
        one.end()


def limits(driver: FakeDriver) -> list[float]:
    return [driver.card(index).limit_watts for index in (0, 1)]


def wait_limits(driver: FakeDriver, watts: float, process: Process) -> None:
    wait_until(lambda: limits(driver) == [watts, watts], WAIT_SECONDS, f"{watts:g} W\n{process.tail()}")


def test_kill_9_of_the_gateway_restores_all_cards(process: Callable[[], Process], driver: FakeDriver) -> None:
    running = process()
    running.process.send_signal(signal.SIGKILL)
    wait_limits(driver, 700.0, running)
    wait_until(lambda: leases(running.leases) == [], WAIT_SECONDS, "the leases are removed")
    assert driver.card(2).touched == 0, "a card that nobody has named"


def test_sigterm_restores_all_cards(process: Callable[[], Process], driver: FakeDriver) -> None:
    running = process()
    running.process.send_signal(signal.SIGTERM)
    assert running.wait_exit(WAIT_SECONDS) == 0
    assert limits(driver) == [700.0, 700.0] and leases(running.leases) == []


# --- the second actuator: the SM clock ---

CLOCK_MHZ = 1140
"""The step above 400 W of the 700 W that an engine of unknown load may draw, of 1980 MHz."""


@pytest.fixture
def locking(twin: str, driver: FakeDriver, tmp_path: Path) -> Iterator[Process]:
    process = Process(twin, driver, tmp_path, "clock")
    try:
        wait_locks(driver, CLOCK_MHZ, process)
        yield process
    finally:
        process.end()


def wait_locks(driver: FakeDriver, mhz: int, process: Process) -> None:
    wait_until(
        lambda: [driver.card(index).lock_high for index in (0, 1)] == [mhz, mhz], WAIT_SECONDS,
        f"{mhz} MHz\n{process.tail()}",
    )  # fmt: skip


def test_clocks_are_locked_and_said(locking: Process, driver: FakeDriver) -> None:
    wait_until(lambda: locking.caps()["current_watts"] == 400.0, WAIT_SECONDS, "it is confirmed")
    told = locking.caps()
    assert (told["actuator"], told["prior_watts"], told["yielded"], told["failures"]) == ("clock", 700.0, None, 0)
    assert limits(driver) == [700.0, 700.0], "the power limit is left alone"
    assert all(one["token"] is not None for one in told["devices"].values())
    assert driver.card(2).touched == 0, "a card that nobody has named"


def test_sigterm_frees_the_clocks(locking: Process, driver: FakeDriver) -> None:
    locking.process.send_signal(signal.SIGTERM)
    assert locking.wait_exit(WAIT_SECONDS) == 0
    wait_locks(driver, 0, locking)
    assert limits(driver) == [700.0, 700.0] and leases(locking.leases) == []


def test_kill_9_frees_the_clocks(locking: Process, driver: FakeDriver) -> None:
    locking.process.send_signal(signal.SIGKILL)
    wait_locks(driver, 0, locking)
    wait_until(lambda: leases(locking.leases) == [], WAIT_SECONDS, "the leases are removed")
    assert limits(driver) == [700.0, 700.0]


def test_who_moves_one_card_has_it_and_the_other_goes_back(process: Callable[[], Process], driver: FakeDriver) -> None:
    running = process()
    driver.somebody_sets(555.0, 1)
    wait_until(lambda: limits(driver) == [700.0, 555.0], WAIT_SECONDS, f"ours goes back\n{running.tail()}")
    wait_until(lambda: running.caps()["decision"]["why"] == "yielded", WAIT_SECONDS, "it is said")
    assert "somebody else set 555 W" in running.caps()["yielded"]
    url = f"http://127.0.0.1:{running.control()}"
    assert ask(url, "POST", "/admin/caps/resume?engine=nobody").status == 404
    assert ask(url, "POST", "/admin/caps/resume?engine=e").status == 200
    wait_limits(driver, 400.0, running)
