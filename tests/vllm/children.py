"""Real vLLM servers and gateways as child processes: started, waited for, read, ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
SERVED_NAME = "tiny"
MAX_MODEL_LEN = 16384
"""So long that a call for all of it outlasts every test that leaves it, on a slow machine and on a fast one."""
MAX_NUM_SEQS = 8
VLLM_START_SECONDS = 240.0
GATEWAY_START_SECONDS = 30.0
END_SECONDS = 30.0
POLL_SECONDS = 0.02

VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "TORCHDYNAMO_DISABLE": "1",
}
"""What lets vLLM start on a CPU without a network."""

CPU_FLAGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN))
"""float32: AVX2 has no fast bf16. Eager: nothing to compile for a model this small."""

FLAGS = (
    *CPU_FLAGS,
    "--enable-prefix-caching",
    "--scheduling-policy=priority",
    "--enable-prompt-tokens-details",
    "--enable-server-load-tracking",
    "--enable-request-id-headers",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # A random model told to write JSON would write blanks for ever.
    '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
)


def vllm_python() -> Path:
    """The Python of the environment that vLLM is installed in; AssertionError says how to get one."""
    python = Path(os.environ.get("JOULEGATE_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python")).absolute()
    assert python.exists(), f"{python} is missing: run `make test-vllm`, or set JOULEGATE_VLLM_PYTHON"
    return python


def model_directory() -> Path:
    """The tiny model's directory; AssertionError says how to make it."""
    model = Path(os.environ.get("JOULEGATE_VLLM_MODEL", ROOT / ".cache" / "vllm-tiny"))
    assert (model / "config.json").exists(), f"{model} holds no model: run tests/vllm/make_model.py {model}"
    return model.resolve()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll until the condition holds; returns the seconds it took. AssertionError after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not so within {seconds:g} s: {what}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


def answers_ok(url: str) -> bool:
    """Does GET on this URL answer 200 now?"""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class Child:
    """A process in its own group, its output in one file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        # The gateway reads JOULEGATE_*; what this suite is told by such names is not the gateway's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("JOULEGATE_")}
        self.log = log
        self.command = tuple(command)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Is the process itself (not its children) still there?"""
        return self.process.poll() is None

    def text(self) -> str:
        """All it has printed so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 60) -> str:
        """The last lines it printed, for an error message."""
        return "\n".join(self.text().splitlines()[-lines:])

    def wait_ready(self, url: str, seconds: float) -> float:
        """Poll the URL until it answers 200; AssertionError with the log's tail if it ends or takes too long."""

        def ready() -> bool:
            assert self.running, f"exit {self.process.returncode}: {shlex.join(self.command)}\n{self.tail()}"
            return answers_ok(url)

        try:
            return wait_until(ready, seconds, f"{url} answers 200")
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- log of {self.command[0]} ---\n{self.tail()}") from None

    def wait_exit(self, seconds: float) -> int:
        """The exit status; AssertionError with the log's tail when it runs on."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s\n{self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL to the whole group, as the kernel does when memory is out; waits for the process to be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(END_SECONDS)

    def end(self) -> None:
        """SIGTERM, time to leave, then SIGKILL for the group."""
        if self.running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
        self.kill()


class VLLM(Child):
    """An unmodified vLLM OpenAI server on a port of the loopback."""

    def __init__(self, log: Path, port: int, flags: Sequence[str] = ()) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            [
                *(str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(model_directory()), "--served-model-name", SERVED_NAME),
                *("--host", "127.0.0.1", "--port", str(port)),
                *FLAGS,
                *flags,
            ],
            log,
            VLLM_ENVIRONMENT,
        )

    def wait_healthy(self) -> float:
        """Seconds until /health answered 200."""
        return self.wait_ready(f"{self.url}/health", VLLM_START_SECONDS)


def joulegate_command() -> list[str]:
    """How to start the gateway: JOULEGATE_COMMAND, else the installed command, else the module."""
    if command := os.environ.get("JOULEGATE_COMMAND"):
        return shlex.split(command)
    installed = Path(sys.executable).with_name("joulegate")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "proxy.cli"]


@dataclass(frozen=True, slots=True)
class Door:
    """Where a gateway listens. `control_url` and `log` are None when it was started by someone else."""

    url: str
    control_url: str | None
    log: Path | None

    def text(self) -> str:
        """What it has printed so far."""
        return "" if self.log is None else self.log.read_text(errors="replace")


class Gateway(Child):
    """`joulegate up` as a user starts it."""

    def __init__(self, log: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.port, self.control_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.control_url = f"http://127.0.0.1:{self.control_port}"
        ports = ["--port", str(self.port), "--control-port", str(self.control_port)]
        super().__init__(
            [*joulegate_command(), "up", *ports, *arguments],
            log,
            {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})},
        )

    def wait_ready_to_serve(self, seconds: float = GATEWAY_START_SECONDS) -> float:
        """Seconds until the control plane's /ready answered 200."""
        return self.wait_ready(f"{self.control_url}/ready", seconds)
