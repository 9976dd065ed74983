"""A real vLLM is put to sleep and woken. On the CPU it frees nothing, but it pauses and says so, as on a card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.twin_process import Twin
from tests.vllm.children import (
    GATEWAY_START_SECONDS,
    ROOT,
    VLLM,
    Child,
    free_port,
    joulegate_command,
    wait_until,
)
from tests.vllm.wire import ask, chat_body

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM in developer mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        server = VLLM(tmp_path_factory.mktemp("sleepy") / "vllm.log", free_port())
    try:
        server.wait_healthy()
        yield server.url
    finally:
        server.end()


class Parking(Child):
    """A gateway before a twin `a` and that vLLM `b`, both of which it may park."""

    def __init__(self, folder: Path, twin: str, vllm: str) -> None:
        port, control = free_port(), free_port()
        self.url, self.control_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}"
        engines = [
            f'[[engines]]\nname = "{name}"\nurl = "{url}"\npark = true\npark_idle_seconds = 0.5\n'
            for name, url in (("a", twin), ("b", vllm))
        ]
        file = folder / "joulegate.toml"
        file.write_text(f"[listen]\nport = {port}\ncontrol_port = {control}\n{''.join(engines)}")
        command = [*joulegate_command(), "serve", "--config", str(file)]
        super().__init__(command, folder / "joulegate.log", {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})

    def state(self, name: str) -> str:
        """Of an engine."""
        found: str = ask(self.control_url, "GET", "/admin/engines").json()["engines"][name]["parking"]["state"]
        return found


def asleep(url: str) -> bool:
    """What it says itself."""
    said: bool = ask(url, "GET", "/is_sleeping").json()["is_sleeping"]
    return said


def test_parked_left_so_by_kill_9_woken_for_a_call_and_at_the_end(sleepy: str, tmp_path: Path) -> None:
    twin = Twin(tmp_path / "twin.log", "--enable-sleep-mode").wait_ready_to_serve()
    gateway = Parking(tmp_path, twin.url, sleepy)
    try:
        gateway.wait_ready(f"{gateway.control_url}/ready", GATEWAY_START_SECONDS)
        wait_until(lambda: gateway.state("b") == "asleep", PATIENCE_SECONDS, "vLLM is parked")
        assert asleep(sleepy) and not asleep(twin.url)
        gateway.kill()
        twin.end()
        gateway = Parking(tmp_path, twin.url, sleepy)
        gateway.wait_ready(f"{gateway.control_url}/ready", GATEWAY_START_SECONDS)
        assert ask(gateway.url, "POST", "/v1/chat/completions", chat_body()).status == 200
        assert not asleep(sleepy)
        gateway.end()
        assert "Traceback" not in gateway.text()
    finally:
        gateway.end()
        twin.end()


def test_what_sleeps_when_the_gateway_ends_is_woken(sleepy: str, tmp_path: Path) -> None:
    twin = Twin(tmp_path / "twin.log", "--enable-sleep-mode").wait_ready_to_serve()
    gateway = Parking(tmp_path, twin.url, sleepy)
    try:
        gateway.wait_ready(f"{gateway.control_url}/ready", GATEWAY_START_SECONDS)
        wait_until(lambda: gateway.state("b") == "asleep", PATIENCE_SECONDS, "vLLM is parked")
        gateway.end()
        assert not asleep(sleepy)
        assert "Traceback" not in gateway.text()
    finally:
        gateway.end()
        twin.end()
