"""`joulegate power status`: what stands in every place where a number stands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from backends.power.lease import Lease, new_record, open_folder
from tests.native.nvml import FakeDriver, uuid
from tests.vllm.children import ROOT, joulegate_command


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "driver", "gpus 2", "card 0 draw_watts 650", "card 1 lost")


def power(tmp_path: Path, *arguments: str, driver: FakeDriver | None = None, code: int = 0) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **({} if driver is None else driver.environment)}
    command = [*joulegate_command(), "power", *arguments]
    if "--config" not in arguments:
        command += ["--lease-dir", str(tmp_path / "leases")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_status_in_words(tmp_path: Path, driver: FakeDriver) -> None:
    text = power(tmp_path, "status", driver=driver)
    first, second = text.split("1  NVIDIA GPU")
    assert f"{uuid(0)}  Fake H200  (measured)" in first
    assert "power             650.0 W" in first
    assert "700 W requested, 700 W enforced, not binding (default 700 W, 200 to 700 W)" in first
    assert "lost: GPU is lost" in second and " W" not in second
    assert driver.card(0).sets == 0


def test_status_in_json(tmp_path: Path, driver: FakeDriver) -> None:
    found = json.loads(power(tmp_path, "status", "--json", "--gpus", "0,1", driver=driver))
    good, lost = found["devices"][:2]
    assert (good["state"], good["power_watts"], good["identity"]) == ("ok", 650.0, uuid(0))
    assert (lost["state"], lost["power_watts"], lost["missing"]["energy_joules"]) == ("lost", None, "lost")


def test_without_a_driver_it_says_absent(tmp_path: Path) -> None:
    text = power(tmp_path, "status")
    assert "GPUs: absent" in text


def test_leases_are_shown_and_whose_they_are(tmp_path: Path, driver: FakeDriver) -> None:
    lease = Lease(open_folder(tmp_path / "leases"), uuid(0))
    lease.acquire()
    lease.write(new_record(uuid(0), "0", {}, lease.token)._replace(snapshot_watts=500.0, ours_watts=(300.0,)))
    assert f"found at 500 W, held by process {os.getpid()}" in power(tmp_path, "status", driver=driver)
    lease.release()
    assert "`joulegate power restore` puts it back" in power(tmp_path, "status", driver=driver)
    (found,) = json.loads(power(tmp_path, "status", "--json", driver=driver))["leases"]
    assert (found["device"], found["held"], found["snapshot_watts"]) == (uuid(0), False, 500.0)


def test_the_configuration_says_which_devices_and_where_leases_lie(tmp_path: Path, driver: FakeDriver) -> None:
    config = tmp_path / "joulegate.toml"
    config.write_text(
        f'[[engines]]\nurl = "http://127.0.0.1:8000"\ngpus = ["0"]\n[power]\nlease_dir = "{tmp_path / "elsewhere"}"\n'
    )
    found = json.loads(power(tmp_path, "status", "--json", "--config", str(config), driver=driver))
    assert [one["device"] for one in found["devices"]] == ["0"]
    assert driver.card(1).touched == 0
    assert str(tmp_path / "elsewhere") in power(tmp_path, "restore", "--config", str(config), driver=driver)


def test_what_is_wrong_is_said(tmp_path: Path, driver: FakeDriver) -> None:
    assert "names no GPU" in power(tmp_path, "status", "--gpus", "first", driver=driver, code=2)
    config = tmp_path / "joulegate.toml"
    config.write_text("[power]\nmode = 3\n")
    assert "joulegate.toml: power.mode: " in power(tmp_path, "status", "--config", str(config), driver=driver, code=2)
