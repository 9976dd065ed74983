"""RAPL's counters under a root of our own: zones, wraps, and what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.power.device import Unavailable
from backends.power.rapl import RaplZone, zones
from backends.power.sample import take


def zone(root: Path, folder: str, name: str, microjoules: int = 5_000_000, wraps_at: int = 262_143_328_850) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


def test_packages_and_their_dram(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 7_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram", 2_500_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 9_000_000)
    (tmp_path / "intel-rapl").mkdir()
    found = zones(tmp_path)
    assert [(one.name, one.energy_joules(), one.is_dram) for one in found] == [
        ("package-0", 7.0, False),
        ("package-0/dram", 2.5, True),
        ("package-1", 9.0, False),
    ]


def test_zones_that_lie_one_in_another(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path / "intel-rapl:0", "intel-rapl:0:0", "dram")
    assert [one.name for one in zones(tmp_path)] == ["package-0", "package-0/dram"]


def test_dram_is_often_missing(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    assert [one.name for one in zones(tmp_path)] == ["package-0"]


def test_the_counter_wraps_and_the_sum_goes_on(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 99_000_000, wraps_at=100_000_000)
    device = RaplZone(folder, "package-0")
    assert device.energy_joules() == 99.0
    for microjoules, joules in ((3_000_000, 103.0), (4_000_000, 104.0), (1_000_000, 201.0)):
        (folder / "energy_uj").write_text(str(microjoules))
        assert device.energy_joules() == joules


def test_a_host_without_zones_says_absent(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(Unavailable) as none:
            zones(root)
        assert none.value.why == "absent"


def test_a_zone_that_goes_away_is_absent_and_not_zero(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    device = RaplZone(folder, "package-0")
    (folder / "energy_uj").unlink()
    sample = take("cpu", device)
    assert (sample.state, sample.energy_joules) == ("absent", None)


def test_no_permission_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = RaplZone(zone(tmp_path, "intel-rapl:0", "package-0"), "package-0")

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)  # the tests may run as root, whom no mode keeps out
    sample = take("cpu", device)
    assert sample.state == "no_permission" and sample.energy_joules is None
    with pytest.raises(Unavailable, match="run as root"):
        device.energy_joules()


def test_nonsense_in_the_file_is_no_data(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    (folder / "energy_uj").write_text("many\n")
    with pytest.raises(Unavailable, match="no_data"):
        RaplZone(folder, "package-0").energy_joules()


def test_a_processor_is_never_capped(tmp_path: Path) -> None:
    device = RaplZone(zone(tmp_path, "intel-rapl:0", "package-0"), "package-0")
    assert not device.can_set_limit and device.capabilities == {"energy_joules"}
    with pytest.raises(Unavailable, match="not_supported"):
        device.set_limit_watts(100.0)
