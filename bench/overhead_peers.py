"""Which proxies does the overhead bench compare, and how is each started? nginx, vllm-router, and this gateway."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from bench.processes import free_ports
from bench.programs import BenchError

if TYPE_CHECKING:
    from pathlib import Path

API_KEY = "sk-test"  # the load generator's; it guards nothing but a gateway that the bench started
ROUTER_VERSION = "0.1.17"
PEERS = ("nginx", "vllm-router")
OURS = "joulegate"

_NGINX_CONFIG = """worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 8m; client_body_buffer_size 1m;
  {temp_paths}
  upstream up {{ server 127.0.0.1:{mock_port}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""

_GATEWAY_CONFIG = """[policy]
name = "fifo"
max_in_flight = {max_in_flight}

[listen]
host = "127.0.0.1"
port = {port}
control_host = "127.0.0.1"
control_port = {control_port}

[[engines]]
name = "mock"
url = "http://127.0.0.1:{mock_port}"

[[keys]]
name = "bench"
sha256 = "{key_hash}"

[log]
path = "{folder}/joulegate-calls.log"
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy under test: how it starts, where it listens, and what it says it is."""

    name: str
    command: list[str]
    port: int
    version: str


def nginx(folder: Path, mock_port: int, install: bool) -> Proxy:
    """nginx as a plain reverse proxy with keep-alive to the engine. Raises BenchError where there is none."""
    if shutil.which("nginx") is None and install:
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]):
            packages = ["nginx-light"] if "install" in command else []
            subprocess.run([*command, *packages], check=False, stdout=subprocess.DEVNULL)
    program = shutil.which("nginx")
    if program is None:
        raise BenchError(
            "nginx is not installed: install Debian's nginx-light (apt-get install nginx-light) or pass --install"
        )
    (port,) = free_ports(1)
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp_paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in names)
    config = folder / "nginx.conf"
    config.write_text(_NGINX_CONFIG.format(folder=folder, temp_paths=temp_paths, mock_port=mock_port, port=port))
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    version = told.stderr.strip().rpartition("/")[2] or "unavailable"
    return Proxy("nginx", [program, "-c", str(config)], port, version)


def vllm_router(work_dir: Path, mock_port: int) -> Proxy:
    """The vLLM project's Rust router, from PyPI, in a venv of its own. Raises BenchError where that fails."""
    venv = work_dir / f"vllm-router-{ROUTER_VERSION}"
    program = venv / "bin" / "vllm-router"
    if not program.exists():
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "-q", f"vllm-router=={ROUTER_VERSION}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                shutil.rmtree(venv, ignore_errors=True)
                raise BenchError(f"vllm-router could not be installed: {(done.stderr or done.stdout).strip()[-400:]}")
    port, metrics_port = free_ports(2)
    options = f"--host 127.0.0.1 --port {port} --worker-urls http://127.0.0.1:{mock_port} --policy round_robin"
    more = f"--log-level warning --prometheus-port {metrics_port}"
    return Proxy("vllm-router", [str(program), *options.split(), *more.split()], port, ROUTER_VERSION)


def gateway(
    folder: Path, mock_port: int, port: int, control_port: int, max_in_flight: int = 1024, more: str = ""
) -> Proxy:
    """This gateway with everything on: identity, keys with a configured key, metrics, the call log, fifo.

    `more` is appended to its config file: further TOML tables.
    """
    key_hash = hashlib.sha256(API_KEY.encode()).hexdigest()
    config = folder / "joulegate.toml"
    config.write_text(
        _GATEWAY_CONFIG.format(
            port=port,
            control_port=control_port,
            mock_port=mock_port,
            key_hash=key_hash,
            folder=folder,
            max_in_flight=max_in_flight,
        )
        + more
    )
    return Proxy(OURS, [sys.executable, "-m", "proxy.cli", "serve", "--config", str(config)], port, gateway_version())


def custom(command: str, mock_port: int, port: int) -> Proxy:
    """A command of the user's; {upstream} in it becomes the mock engine's base URL and {port} the port."""
    filled = command.replace("{upstream}", f"http://127.0.0.1:{mock_port}").replace("{port}", str(port))
    return Proxy(OURS, shlex.split(filled), port, "as given")


def gateway_version() -> str:
    """The installed version of joulegate."""
    try:
        return metadata.version("joulegate")
    except metadata.PackageNotFoundError:
        return "from source"
