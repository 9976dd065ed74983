"""Where and with what was it measured? Versions, host, GPU, commit: for whoever reads the result later."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.processes import cpu_model

PACKAGES = ("aiohttp", "numpy", "orjson", "pyarrow", "scipy", "uvloop")
UNKNOWN = "unavailable"


def environment(argv: list[str], *, gpu: bool) -> dict[str, Any]:
    """`gpu`: look for cards of this host as well, which a run in virtual time does not use."""
    return {
        "joulegate": _version("joulegate"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": _dirty(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "gpus": _gpus() if gpu else [],
        "command": ["joulegate-bench", *argv],
        "executable": Path(sys.executable).name,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN


def _dirty() -> bool | None:
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status == UNKNOWN else bool(status)


def _gpus() -> list[dict[str, Any]]:
    """As NVML tells; an empty list where there is no driver or no card."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  (no library, no driver, no permission: all the same here)
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "index": index,
                    "name": pynvml.nvmlDeviceGetName(handle),
                    "driver": pynvml.nvmlSystemGetDriverVersion(),
                    "enforced_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
                }
            )
        return found
    except pynvml.NVMLError as error:
        return [{"error": str(error)}]
    finally:
        pynvml.nvmlShutdown()
