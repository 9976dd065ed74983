"""`joulegate-bench demo` as a user runs it: real processes, with a terminal and without, and nothing left of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.children import wait_until
from tests.vllm.wire import ask

WAIT_SECONDS = 60.0
MARK = "DEMO_TEST_MARK"
FAST = ("--speed", "20", "--seconds", "2")
ENDLESS = ("--speed", "1", "--seconds", "600", "--policies", "passthrough")


@pytest.fixture(scope="module", autouse=True)
def _usual_ports_taken() -> Iterator[None]:
    """By us or by whoever was there before."""
    with contextlib.ExitStack() as stack:
        for port in (8000, 8080, 8081):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Demo:
    """A running demo; its processes are found by a mark in their environment."""

    def __init__(self, *options: str, terminal: bool = False) -> None:
        self.mark = uuid.uuid4().hex
        self.text = ""
        command = [sys.executable, "-m", "bench.cli", "demo", *options]
        environment = {**os.environ, MARK: self.mark, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
        self._output, theirs = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            command,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509  # one system call
        )
        os.close(theirs)

    def read_until(self, pattern: str) -> re.Match[str]:
        """Its output has this."""
        until = time.monotonic() + WAIT_SECONDS
        while not (found := re.search(pattern, self.text)):
            readable, _, _ = select.select([self._output], [], [], max(0, until - time.monotonic()))
            assert readable, f"no {pattern!r} in:\n{self.text}"
            assert self._read(), f"it ended without {pattern!r}:\n{self.text}"
        return found

    def _read(self) -> bool:
        with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
            data = os.read(self._output, 65536)
            self.text += data.decode()
            return bool(data)
        return False

    def processes(self) -> list[tuple[int, str]]:
        """Pid and command line of all that are left of it, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        return found

    def press_ctrl_c(self) -> None:
        """As on a keyboard: the terminal sends SIGINT to the group."""
        os.write(self._output, b"\x03")

    def end(self) -> int:
        """Its exit code once it has ended by itself; nothing is left and nothing was said that is for developers."""
        while self._read():
            pass
        code = self.process.wait(WAIT_SECONDS)
        assert self.processes() == []
        assert "Traceback" not in self.text
        return code

    def clear(self) -> None:
        """Whatever became of the test."""
        for pid, _ in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(WAIT_SECONDS)
        os.close(self._output)


@contextlib.contextmanager
def demo(*options: str, terminal: bool = False) -> Iterator[Demo]:
    """A demo with these options."""
    running = Demo(*options, terminal=terminal)
    try:
        yield running
    finally:
        running.clear()


def test_without_a_terminal_it_ends_after_the_table(tmp_path: Path) -> None:
    with demo(*FAST, "--json", str(tmp_path / "demo.json")) as running:
        assert running.end() == 0
    text = running.text
    assert all(f"({port} is taken)" in " ".join(text.split()) for port in (8000, 8080, 8081))
    assert "\x1b" not in text and "\r" not in text
    assert re.search(r"^  simulated +calls +workflows +time p50 +time p95 +J/workflow +tokens/s$", text, re.MULTILINE)
    document = json.loads((tmp_path / "demo.json").read_text())
    assert document["source"] == "simulated"
    for figures in document["policies"]:
        row = re.search(rf"^  (?:Also run: )?{figures['policy']}[ ,].*$", text, re.MULTILINE)
        assert row and f"{figures['joules_per_workflow']:,.1f} J" in row[0]
        assert figures["failed_calls"] == 0 < figures["calls"]
        assert figures["joules"] > 118 * figures["horizon_seconds"] * 0.95, "idle is included"
    assert [each["policy"] for each in document["policies"]] == ["passthrough", "joule"]
    assert len({(each["calls"], each["workflows"], each["output_tokens"]) for each in document["policies"]}) == 1
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here to paste into")
def test_on_a_terminal_the_gateway_stays_until_ctrl_c() -> None:
    with demo(*FAST, "--policies", "passthrough", terminal=True) as running:
        running.read_until(r"power meter +http://\S+/power\s")
        shown = running.text.replace("\r\n", "\n")
        assert re.search(r"^  passthrough +\d+ ", shown, re.MULTILINE)
        pasted = re.search(r"^  curl (?:.*\n)*?.*\}'$", shown, re.MULTILINE)
        assert pasted, shown
        answer = subprocess.run(["bash", "-c", pasted[0]], capture_output=True, timeout=WAIT_SECONDS, check=True)
        assert json.loads(answer.stdout)["usage"]["completion_tokens"] == 40
        for path, holds in (("/admin/state", "my-first"), ("/metrics", "joulegate_"), ("/power", '"simulated"')):
            address = re.search(rf"(http://\S+){path}\s", shown)
            assert address
            body = ask(address[1], "GET", path)
            assert body.status == 200 and holds in body.body.decode()
        running.press_ctrl_c()
        assert running.end() == 0


def test_ctrl_c_before_the_table_ends_all() -> None:
    with demo(*ENDLESS, terminal=True) as running:
        running.read_until(r"[1-9]\d* of \d+ calls")
        assert len(running.processes()) == 3
        running.press_ctrl_c()
        assert running.end() == 128 + signal.SIGINT


def test_sigterm_ends_all() -> None:
    with demo(*ENDLESS) as running:
        running.read_until("under way")
        running.process.terminate()
        assert running.end() == 128 + signal.SIGTERM


def test_killed_it_leaves_nobody_behind() -> None:
    with demo(*ENDLESS) as running:
        running.read_until("under way")
        running.process.kill()
        running.process.wait()
        wait_until(lambda: running.processes() == [], WAIT_SECONDS, "the kernel ended its children")


def test_a_child_that_dies_ends_it_with_the_end_of_its_log() -> None:
    with demo(*ENDLESS) as running:
        running.read_until("under way")
        (twin,) = [pid for pid, command in running.processes() if " twin " in command]
        os.kill(twin, signal.SIGKILL)
        assert running.end() == 1
    assert re.search(r"the twin was ended by SIGKILL; the end of its log:\n  joulegate twin: http", running.text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "8080"], "--port 8080: somebody listens there; choose another, or leave it out"),
        (["--port", "9", "--control-port", "9"], "--control-port 9: is --port's already"),
        (["--json", "/nowhere/demo.json"], "--json /nowhere/demo.json: No such file or directory; name a file"),
        (["--speed", "0"], "argument --speed: must be a number from 0.1 to 50, not '0'"),
        (["--seconds", "nan"], "argument --seconds: must be a number from 2 to 600, not 'nan'"),
        (["--seed", "-1"], "argument --seed: must be a whole number from 0 to"),
        (["--policies", "fifo,passthru"], "argument --policies: 'passthru' is not one of"),
    ],
)
def test_what_cannot_be_is_named(options: list[str], told: str) -> None:
    with demo(*options) as running:
        assert running.end() == 2
    assert told in running.text
