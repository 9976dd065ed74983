"""[power]: defaults that touch nothing, values that are refused, names of GPUs, token files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backends.power.agent_client import AgentDevice
from backends.power.nvml import NvmlDevice
from backends.power.opening import AgentAt, UnknownGpu, Where, check_name, open_device, reopen
from backends.power.pci import bus_id
from backends.power.tokens import BadToken, read_token, same
from backends.power.twin_http import TwinHttpDevice
from backends.power.zeusd import ZeusdDevice
from proxy.power_config import PowerConfig

TOKEN = "0123456789abcdef"


def test_nothing_is_touched_by_default() -> None:
    config = PowerConfig()
    assert config.mode == "observe" and config.watchdog and config.where() == Where()


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "set"},
        {"sample_seconds": 0.05},
        {"sample_seconds": 2.0},
        {"sample_seconds": "0.1"},
        {"zeusd": "zeusd.sock"},
        {"watchdog": "no"},
        {"unknown": 1},
        {"agents": [{"name": "a", "url": "host:1", "token_file": "f"}]},
        {"agents": [{"name": "a", "url": "http://user:pass@host", "token_file": "f"}]},
        {"agents": [{"name": "a/b", "url": "http://host", "token_file": "f"}]},
        {"agents": [{"name": "a", "url": "http://host", "token_file": "f"}] * 2},
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PowerConfig.model_validate(fields)


def test_a_password_of_redis_does_not_show() -> None:
    assert "secret" not in repr(PowerConfig.model_validate({"redis_url": "redis://:secret@host:6379/0"}))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nand more\n")
    file.chmod(0o600)
    return file


def test_names_open_what_they_say(token_file: Path) -> None:
    agents = [{"name": "a", "url": "http://host:8082/", "token_file": str(token_file)}]
    where = PowerConfig.model_validate({"agents": agents}).where("me")
    assert isinstance(open_device("GPU-1", where), NvmlDevice)
    assert isinstance(open_device("0", where), NvmlDevice)
    assert isinstance(open_device("0000:3b:00.0", where), NvmlDevice)
    assert isinstance(open_device("twin:http://127.0.0.1:8000", where), TwinHttpDevice)
    agent = open_device("agent:a/GPU-1", where)
    assert isinstance(agent, AgentDevice) and TOKEN not in str(agent.spec)
    again = reopen(agent.spec)
    assert again.spec == agent.spec and again.identity == agent.identity
    zeusd = open_device("zeusd/1", Where(zeusd="unix:/run/zeusd.sock", zeusd_token_file=token_file))
    assert isinstance(zeusd, ZeusdDevice) and reopen(zeusd.spec).spec == zeusd.spec


@pytest.mark.parametrize(
    "name", ["", "gpu0", "agent:b/0", "agent:a", "zeusd/0", "zeusd/x", "-1", "0,1", "GPU", "twin:here", "twin", "99999"]
)
def test_a_name_that_means_nothing_is_refused(name: str, token_file: Path) -> None:
    agents = [{"name": "a", "url": "http://host", "token_file": str(token_file)}]
    where = PowerConfig.model_validate({"agents": agents}).where()
    for refused in (open_device, check_name):
        with pytest.raises(UnknownGpu, match=r"must be|names no GPU"):
            refused(name, where)


def test_a_device_that_cannot_be_spoken_to_is_refused_by_its_name(tmp_path: Path, token_file: Path) -> None:
    agents = {"a": AgentAt("http://host:8082", tmp_path / "none"), "b": AgentAt("http://host:99999", token_file)}
    for name, said in (("agent:a/0", "No such file"), ("agent:b/0", "agent:b/0"), ("twin:http://", "http://host:port")):
        with pytest.raises(UnknownGpu, match=said):
            open_device(name, Where(agents))


@pytest.mark.parametrize("spec", [{}, {"kind": "other"}, {"kind": "twin"}, {"kind": "agent", "url": "http://h"}])
def test_a_lease_that_names_no_device_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no device that could be opened"):
        reopen(spec)


def test_a_bus_id_is_one_however_it_is_written() -> None:
    assert (
        bus_id("00000000:3B:00.0") == bus_id("0000:3b:00.0") == bus_id("3b:00.0") == bus_id("3b:00") == (0, 0x3B, 0, 0)
    )
    assert bus_id("0") is None and bus_id("GPU-1") is None


@pytest.mark.parametrize("text", ["", "short\n", "x" * 600, "with blanks in the middle\n", "fünfzehn-zeichen-ü\n"])
def test_a_token_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(BadToken, match="openssl rand"):
        read_token(file)


def test_a_token_that_others_may_read_is_refused(token_file: Path) -> None:
    assert read_token(token_file) == TOKEN
    token_file.chmod(0o640)
    with pytest.raises(BadToken, match="chmod 600"):
        read_token(token_file)
    with pytest.raises(BadToken, match="No such file"):
        read_token(token_file.with_name("other"))


def test_a_token_is_compared_whole() -> None:
    assert same(f"Bearer {TOKEN}", TOKEN)
    for sent in ("", TOKEN, f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}", f"Bearer {TOKEN}\u00e9", "Bearer \ud800"):
        assert not same(sent, TOKEN)
