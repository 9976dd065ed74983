"""zeusd's API, answered on a real Unix socket as its documentation says."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backends.power.cap import Cap
from backends.power.cli import Options, status
from backends.power.device import ENFORCED_UNTOLD, Unavailable
from backends.power.lease import leases, open_folder
from backends.power.opening import Where, open_device, reopen
from backends.power.sample import take
from backends.power.zeusd import ZeusdDevice
from tests.e2e.harness import EngineRequest, engine, gateway, run, until
from tests.native.devices import FakeDevice
from tests.native.nvml import FakeDriver, uuid

TOKEN = "a-token-of-zeusd-0"


class Zeusd(ThreadingUnixStreamServer):
    """Two GPUs."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.limits_mw = {0: 500_000, 1: 700_000}
        self.clocks: dict[int, tuple[int, int] | None] = {0: None, 1: None}
        self.fault: tuple[int, str] | None = None
        self.token = ""
        self.asked: list[str] = []
        super().__init__(str(path), Handler)

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)

    def read(self, call: str, ids: list[int]) -> Any:
        if call == "get_power":
            return {"timestamp_ms": 1, "power_mw": {str(gpu): 75_000 for gpu in ids}}
        found: dict[str, dict[str, object]] = {}
        for gpu in ids:
            rows: dict[str, dict[str, object]] = {
                "get_cumulative_energy": {"energy_mj": 123456 + gpu},
                "get_power_limit": {"power_limit_mw": self.limits_mw[gpu]},
                "get_power_limit_constraints": {"min_power_limit_mw": 200_000, "max_power_limit_mw": 700_000},
                "get_persistence_mode": {"enabled": True},
            }
            if call not in rows:
                return None
            found[str(gpu)] = rows[call]
        return found

    def write(self, call: str, ids: list[int], query: dict[str, str]) -> bool:
        for gpu in ids:
            match call:
                case "set_power_limit":
                    self.limits_mw[gpu] = int(query["power_limit_mw"])
                case "set_gpu_locked_clocks":
                    self.clocks[gpu] = int(query["min_clock_mhz"]), int(query["max_clock_mhz"])
                case "reset_gpu_locked_clocks":
                    self.clocks[gpu] = None
                case _:
                    return False
        return True


class Handler(BaseHTTPRequestHandler):
    """Its routes."""

    protocol_version = "HTTP/1.1"
    server: Zeusd

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        zeusd = self.server
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        zeusd.asked.append(f"{self.command} {self.path}")
        ids = [int(gpu) for gpu in query.get("gpu_ids", "0,1").split(",")]
        call = parts.path.removeprefix("/gpu/")
        if zeusd.token and parts.path != "/discover" and self.headers.get("authorization") != f"Bearer {zeusd.token}":
            self._say(401, {"error": "Authentication required."})
        elif zeusd.fault is not None:
            self._say(zeusd.fault[0], {"errors": {str(ids[0]): zeusd.fault[1]}})
        elif parts.path == "/discover":
            gpus = [{"id": gpu, "name": "NVIDIA H200", "pci_address": f"0000:{0x3B + gpu:02x}:00.0"} for gpu in (0, 1)]
            self._say(200, {"gpus": gpus, "cpus": [], "enabled_api_groups": ["gpu-read"], "auth_required": False})
        elif not set(ids) <= {0, 1}:
            self._say(400, {"errors": {str(ids[0]): f"GPU index {ids[0]} does not exist."}})
        elif self.command == "GET" and (body := zeusd.read(call, ids)) is not None:
            self._say(200, body)
        elif self.command == "POST" and query.get("block") == "true" and zeusd.write(call, ids, query):
            self._say(200, None)
        else:
            self._say(404, {"error": "no such call"})

    def _say(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not into the tests' output."""


@pytest.fixture
def zeusd(tmp_path: Path) -> Iterator[Zeusd]:
    path = Path("/tmp") / f"joulegate-zeusd-{os.getpid()}.sock"  # a socket's path must be short
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    server = Zeusd(path)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    path.unlink()


def gpu(zeusd: Zeusd, index: int = 1) -> ZeusdDevice:
    device = open_device(f"zeusd/{index}", Where(zeusd=f"unix:{zeusd.server_address!s}"))
    assert isinstance(device, ZeusdDevice)
    return device


def test_what_zeusd_tells_is_read_and_the_rest_is_not_supported(zeusd: Zeusd) -> None:
    device = gpu(zeusd)
    sample = take("gpu", device)
    device.close()
    assert (sample.state, sample.energy_joules, sample.instant_power_watts) == ("ok", 123.457, 75.0)
    assert sample.limits == (700.0, None, None, 200.0, 700.0) and sample.persistence_mode is True
    assert set(sample.missing) == {"power_watts", "sm_clock_mhz", "temperature_celsius", "throttle_reasons"}
    assert set(sample.missing.values()) == {"not_supported"}
    assert all("gpu_ids=1" in line for line in zeusd.asked), "no other GPU is asked for"


def test_a_limit_is_set_and_put_back(zeusd: Zeusd, tmp_path: Path) -> None:
    device = gpu(zeusd, 0)
    cap = Cap("gpu", device, open_folder(tmp_path / "leases"), None)
    outcome = cap.set_limit_watts(350.0)
    assert outcome[1:6] == ("applied", 350.0, 350.0, 350.0, None)
    assert cap.lock_sm_clock_mhz((900.0, 1200.0)).state == "applied"
    assert (zeusd.limits_mw, zeusd.clocks[0]) == ({0: 350_000, 1: 700_000}, (900, 1200))
    cap.restore()
    device.close()
    assert (zeusd.limits_mw[0], zeusd.clocks[0], leases(tmp_path / "leases")) == (500_000, None, [])


async def nothing(request: EngineRequest) -> None:
    """An engine that nobody asks for anything."""


def test_that_it_is_never_capped_is_said(zeusd: Zeusd, capsys: pytest.CaptureFixture[str]) -> None:
    """zeusd alone does not tell which limit is in force: in `joulegate power status`, and at /admin/caps."""
    where = Where(zeusd=f"unix:{zeusd.server_address!s}")
    assert status(Options(("zeusd/1",), where, Path("/nowhere"))) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "700 W requested, not told enforced" in text and "caps never capped: nobody tells" in text

    async def main() -> None:
        async with engine(nothing) as scripted:
            engines = [{"url": scripted.url, "gpus": ["zeusd/1"]}]
            async with gateway(scripted, engines=engines, power={"zeusd": where.zeusd}) as running:
                [name] = running.app.gateway.engines
                capping = running.app.energy.capping
                await until(lambda: capping.describe()["engines"][name]["why"] == ENFORCED_UNTOLD, "it is said")

    run(main)


@pytest.mark.parametrize(
    ("code", "why"), [(403, "no_permission"), (404, "not_supported"), (400, "absent"), (500, "no_data")]
)
def test_its_errors_are_states(zeusd: Zeusd, code: int, why: str) -> None:
    zeusd.fault = code, "as the test wants"
    device = gpu(zeusd)
    with pytest.raises(Unavailable, match="as the test wants") as refused:
        device.energy_joules()
    device.close()
    assert refused.value.why == why


def test_a_limit_that_it_refuses(zeusd: Zeusd) -> None:
    device = gpu(zeusd)
    zeusd.fault = 400, "Invalid request"
    with pytest.raises(ValueError, match="Invalid request"):
        device.set_limit_watts(350.0)
    zeusd.fault = 403, "Insufficient Permissions"
    with pytest.raises(Unavailable) as refused:
        device.set_limit_watts(350.0)
    device.close()
    assert refused.value.why == "no_permission"


def test_its_token_is_read_from_a_file_and_never_written_down(zeusd: Zeusd, tmp_path: Path) -> None:
    zeusd.token = TOKEN
    device = gpu(zeusd)
    with pytest.raises(Unavailable) as refused:
        device.energy_joules()
    assert refused.value.why == "no_permission"
    device.close()
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    allowed = open_device("zeusd/1", Where(zeusd=f"unix:{zeusd.server_address!s}", zeusd_token_file=file))
    assert allowed.energy_joules() == 123.457 and TOKEN not in str(allowed.spec)
    again = reopen(allowed.spec)
    assert again.energy_joules() == 123.457
    allowed.close()
    again.close()


def test_nobody_at_the_socket_is_unreachable(tmp_path: Path) -> None:
    sample = take("gpu", ZeusdDevice(f"unix:{tmp_path}/none.sock", 0))
    assert (sample.state, sample.energy_joules) == ("unreachable", None)


def test_one_that_does_not_answer_is_unreachable_after_a_while(tmp_path: Path) -> None:
    path = Path("/tmp") / f"joulegate-silent-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        try:
            sample = take("gpu", ZeusdDevice(f"unix:{path}", 0))
        finally:
            path.unlink()
    assert sample.state == "unreachable" and "did not answer within 1 s" in sample.detail


def test_where_the_driver_can_be_read_it_is_and_zeusd_only_sets(zeusd: Zeusd) -> None:
    device = ZeusdDevice(f"unix:{zeusd.server_address!s}", 0, FakeDevice("H200"))
    assert take("gpu", device).temperature_celsius == 47.0 and zeusd.asked == []
    device.set_limit_watts(300.0)
    device.close()
    assert zeusd.limits_mw[0] == 300_000


def test_a_card_is_found_at_zeusd_by_its_pci_address(zeusd: Zeusd, tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path / "driver", "gpus 2")
    code = f"""
import json
from backends.power.opening import Where, open_device
device = open_device("{uuid(1)}", Where(zeusd="unix:{zeusd.server_address!s}"))
device.set_limit_watts(250)
print(json.dumps([type(device).__name__, device.identity, device.energy_joules() > 1000, dict(device.spec)["index"]]))
"""
    assert driver.run(code) == ["ZeusdDevice", uuid(1), True, 1]
    assert zeusd.limits_mw == {0: 500_000, 1: 250_000}
    assert driver.card(1).sets == driver.card(0).touched == 0
