"""The container image and the example deployment agree with the configuration, with each other and with the tree."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config_file import load

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE_KEY = "joulegate-example-key"

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
SETTINGS: dict[str, Any] = tomllib.loads((DEPLOY / "joulegate.toml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) in order, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def final_stage() -> list[tuple[str, str]]:
    """The instructions after the last FROM."""
    steps = dockerfile()
    last = max(index for index, (instruction, _) in enumerate(steps) if instruction == "FROM")
    return steps[last + 1 :]


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    """What follows that instruction, each time it stands there."""
    return [rest for name, rest in steps if name == instruction]


def copied_from_tree() -> list[str]:
    """Every path of the build context that the Dockerfile copies."""
    copies = [shlex.split(rest) for rest in values(dockerfile(), "COPY")]
    return [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]


def health_command(port: int) -> list[str]:
    """The HEALTHCHECK's command, asking that port of the loopback and run by this Python."""
    (check,) = values(final_stage(), "HEALTHCHECK")
    program, *arguments = json.loads(check.split(" CMD ", 1)[1])
    assert program == "python"
    return [
        sys.executable,
        *(argument.replace(str(SETTINGS["listen"]["control_port"]), str(port)) for argument in arguments),
    ]


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server whose every answer has this status: its port, and the paths asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], paths
        finally:
            server.shutdown()
            thread.join()


def test_the_gateway_takes_the_example_configuration() -> None:
    load(DEPLOY / "joulegate.toml", {}, {})


def test_the_image_is_built_from_pinned_bases() -> None:
    (default,) = [rest.split("=", 1)[1] for rest in values(dockerfile(), "ARG") if rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"python:3\.1[1-9]\.\d+-slim-\w+@sha256:[0-9a-f]{64}", default)
    assert {rest.split()[0] for rest in values(dockerfile(), "FROM")} == {"${PYTHON_IMAGE}"}


def test_the_image_installs_by_hash_alone() -> None:
    installs = re.findall(r"pip [^&]*\binstall\b[^&]*", " && ".join(values(dockerfile(), "RUN")))
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or ("--no-deps" in install and "--no-index" in install)


def test_the_image_does_not_run_as_root() -> None:
    user = values(final_stage(), "USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "numbers, so that a cluster can tell that it is not root"
    owner = re.findall(r"install -d -o (\d+) -g (\d+) (\S+)", " ".join(values(final_stage(), "RUN")))
    assert owner == [(*user.split(":"), SETTINGS["state_dir"])]


def test_the_image_has_every_package_and_copies_what_exists() -> None:
    copied = copied_from_tree()
    assert [source for source in copied if not (ROOT / source).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert packages
    assert packages <= set(copied)


def test_the_build_context_holds_what_is_copied_and_little_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == set(copied_from_tree())


def test_the_image_starts_the_gateway_with_the_mounted_configuration() -> None:
    (entrypoint,), (command,) = values(final_stage(), "ENTRYPOINT"), values(final_stage(), "CMD")
    assert json.loads(entrypoint) == ["joulegate"]
    assert "joulegate" in PROJECT["scripts"]
    path = json.loads(command)[-1]
    assert json.loads(command) == ["serve", "--config", path]
    assert any(volume.split(":")[1] == path for volume in SERVICES["gateway"]["volumes"])


def test_the_ports_are_the_same_everywhere() -> None:
    listen = SETTINGS["listen"]
    (exposed,) = values(final_stage(), "EXPOSE")
    assert [int(port) for port in exposed.split()] == [listen["port"], listen["control_port"]]
    published = [port.rsplit(":", 1)[1] for port in SERVICES["gateway"]["ports"]]
    assert published == [str(listen["port"]), str(listen["control_port"])]


def test_health_is_asked_of_the_control_port() -> None:
    assert str(SETTINGS["listen"]["control_port"]) in " ".join(values(final_stage(), "HEALTHCHECK"))
    with answering(200) as (port, paths):
        assert subprocess.run(health_command(port), check=False, timeout=20).returncode == 0
    assert paths == ["/health"]


def test_an_unwell_or_absent_gateway_is_unhealthy() -> None:
    with answering(503) as (port, _):
        assert subprocess.run(health_command(port), check=False, timeout=20).returncode == 1
    # The port is closed again now.
    gone = subprocess.run(health_command(port), check=False, timeout=20, capture_output=True)
    assert gone.returncode == 1
    assert b"ConnectionRefusedError" in gone.stderr


def test_only_the_gateway_is_reached_from_outside_and_by_default_from_this_host_alone() -> None:
    assert "ports" not in SERVICES["vllm"]
    model_api, control = SERVICES["gateway"]["ports"]
    assert model_api.startswith("${JOULEGATE_BIND:-127.0.0.1}:")
    assert control.startswith("127.0.0.1:")
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["prometheus"]["ports"])


def test_the_example_key_is_the_documented_one() -> None:
    (key,) = SETTINGS["keys"]
    assert key["sha256"] == hashlib.sha256(EXAMPLE_KEY.encode()).hexdigest()
    assert EXAMPLE_KEY in (DEPLOY / "joulegate.toml").read_text()
    assert f"Bearer {EXAMPLE_KEY}" in (DEPLOY / "README.md").read_text()


def vllm_port() -> str:
    """The port that vLLM is told to listen on."""
    (port,) = [word.partition("=")[2] for word in SERVICES["vllm"]["command"] if word.startswith("--port=")]
    return port


def test_the_engine_is_the_compose_service() -> None:
    assert [engine["url"] for engine in SETTINGS["engines"]] == [f"http://vllm:{vllm_port()}"]
    assert f"127.0.0.1:{vllm_port()}/health" in " ".join(SERVICES["vllm"]["healthcheck"]["test"])


@pytest.mark.parametrize(
    "flag",
    [
        "--scheduling-policy=priority",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        "--enable-request-id-headers",
        "--enable-server-load-tracking",
    ],
)
def test_vllm_is_started_as_the_scheduler_needs_it(flag: str) -> None:
    assert flag in SERVICES["vllm"]["command"]


def test_prometheus_scrapes_the_gateway_and_the_engine() -> None:
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in PROMETHEUS["scrape_configs"]}
    assert targets == {
        "joulegate": [f"gateway:{SETTINGS['listen']['control_port']}"],
        "vllm": [f"vllm:{vllm_port()}"],
    }
    # Both serve the default path.
    assert all("metrics_path" not in job for job in PROMETHEUS["scrape_configs"])


def test_images_have_a_version() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["gateway"] == f"joulegate:{PROJECT['version']}"
    for image in images.values():
        assert re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+", image), image


def test_mounted_files_and_volumes_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], volume
    build = SERVICES["gateway"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == ROOT / "Dockerfile"


def test_running_streams_have_time_to_finish() -> None:
    grace_seconds = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace_seconds > load(DEPLOY / "joulegate.toml", {}, {}).timeouts.drain_seconds


def test_what_a_deployment_fills_in_is_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert any(fnmatch("deploy/.env", pattern) for pattern in ignored)


def test_ci_runs_the_commands_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"^step make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"lint", "test", "test-vllm"} <= set(called) <= targets
