"""Leases: one writer, fencing tokens that grow, what is written before a change, and orphans."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.power import restore as restoring
from backends.power.lease import Lease, LeaseFault, LeaseHeld, file_name, leases, new_record, open_folder
from backends.power.restore import restore, restore_lease, restore_orphans
from tests.native.devices import FakeDevice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return open_folder(tmp_path / "leases")


def test_one_writer(folder: Path) -> None:
    first, second = Lease(folder, "GPU-1"), Lease(folder, "GPU-1")
    first.acquire()
    assert first.is_locked() and second.is_locked()
    first.write(new_record("GPU-1", "0", {}, first.token))
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "):
        second.acquire()
    other = Lease(folder, "GPU-2")
    other.acquire()
    other.release()
    first.release()
    assert not second.is_locked()
    second.acquire()
    second.release()


def test_tokens_only_grow(folder: Path) -> None:
    tokens = []
    for _ in range(12):
        lease = Lease(folder, "GPU-1")
        lease.acquire()
        tokens.append(lease.token)
        lease.remove()
        lease.release()
    assert tokens == list(range(1, 13))


def test_a_lease_is_read_as_it_was_written(folder: Path) -> None:
    lease = Lease(folder, "GPU-1")
    lease.acquire()
    record = new_record("GPU-1", "0", {"kind": "nvml", "gpu": "GPU-1"}, lease.token)
    lease.write(record._replace(snapshot_watts=500.0, ours_watts=(500.0, 350.0), clock_locked=True))
    assert Lease(folder, "GPU-1").read() == record._replace(
        snapshot_watts=500.0, ours_watts=(500.0, 350.0), clock_locked=True
    )
    assert [path.name for path in folder.iterdir() if path.suffix == ".partial"] == []
    lease.remove()
    assert lease.read() is None
    lease.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": "x"}', "null"])
def test_a_file_that_is_no_lease_is_said_and_left(folder: Path, text: str) -> None:
    (folder / "GPU-1.json").write_text(text)
    with pytest.raises(LeaseFault, match="not a lease"):
        Lease(folder, "GPU-1").read()
    (done,) = restore_orphans(folder)
    assert done.state == "failed" and (folder / "GPU-1.json").exists()


@pytest.mark.parametrize("device", ["../../etc/passwd", "twin-http://127.0.0.1:8000-0", "x" * 300, ".hidden", "a b"])
def test_whatever_it_is_called_its_file_lies_in_the_folder(folder: Path, device: str) -> None:
    lease = Lease(folder, device)
    assert lease.file.parent == folder and lease.file.resolve().parent == folder.resolve()
    assert len(lease.file.name) < 128 and file_name(device) != file_name(device + "_")
    lease.acquire()
    lease.release()


def test_a_folder_where_others_may_write_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(LeaseFault, match="chmod 700"):
        open_folder(open_to_all)


# --- restoring ---


def a_lease(folder: Path, **fields: object) -> Lease:
    lease = Lease(folder, "GPU-1")
    lease.acquire()
    lease.write(new_record("GPU-1", "0", {"kind": "fake"}, lease.token)._replace(**fields))  # type: ignore[arg-type]
    return lease


def test_what_was_found_is_restored_and_not_the_default(folder: Path) -> None:
    device = FakeDevice(limit_watts=350.0)
    lease = a_lease(folder, snapshot_watts=500.0, ours_watts=(500.0, 350.0), clock_locked=True)
    device.lock_sm_clock_mhz(1000.0, 1200.0)
    done = restore_lease(lease, device)
    assert (done.state, done.watts) == ("restored", 500.0)
    assert (device.sets, device.clock, device.let_go_count) == ([500.0], None, 1)
    assert lease.read() is None
    lease.release()


@pytest.mark.parametrize("now", [500.0, 350.0, 420.0, 352.0])
def test_any_of_our_values_is_ours(folder: Path, now: float) -> None:
    """Killed between writing the lease and setting the limit, or after it, or after a driver that rounds."""
    device = FakeDevice(limit_watts=now)
    record = new_record("GPU-1", "0", {}, 1)._replace(snapshot_watts=500.0, ours_watts=(420.0, 350.0))
    assert restore(device, record).state == "restored"
    assert device.limit_watts == 500.0


def test_what_somebody_else_set_is_left_alone(folder: Path) -> None:
    device = FakeDevice(limit_watts=600.0)
    lease = a_lease(folder, snapshot_watts=500.0, ours_watts=(500.0, 350.0))
    done = restore_lease(lease, device)
    assert done.state == "left_alone" and "600 W" in done.detail
    assert device.sets == [] and lease.read() is None
    lease.release()


def test_what_cannot_be_restored_stays_an_orphan(folder: Path) -> None:
    lease = a_lease(folder, snapshot_watts=500.0, ours_watts=(350.0,))
    done = restore_lease(lease, FakeDevice(limit_watts=350.0, faults={"set_limit": "lost"}))
    assert done.state == "failed" and lease.read() is not None
    lease.release()


def test_a_driver_that_ignores_the_restore_is_noticed(folder: Path) -> None:
    lease = a_lease(folder, snapshot_watts=500.0, ours_watts=(350.0,))
    device = FakeDevice(limit_watts=350.0, step_watts=350.0)  # makes 350 of 500
    assert restore_lease(lease, device).state == "failed"
    lease.release()


def test_orphans_are_restored_and_held_ones_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(limit_watts=350.0)
    monkeypatch.setattr(restoring, "reopen", lambda spec: device)
    lease = a_lease(folder, snapshot_watts=500.0, ours_watts=(350.0,))
    assert [done.state for done in restore_orphans(folder)] == ["held"]
    assert device.sets == []
    lease.release()
    assert [(done.device, done.state) for done in restore_orphans(folder)] == [("0", "restored")]
    assert device.sets == [500.0] and leases(folder) == []


def test_a_lease_whose_device_nobody_knows_is_said_and_left(folder: Path) -> None:
    a_lease(folder, snapshot_watts=500.0, ours_watts=(350.0,)).release()
    (done,) = restore_orphans(folder)
    assert done.state == "failed" and "no device that could be opened" in done.detail
    assert len(leases(folder)) == 1
