"""`joulegate-bench overhead` measures a real proxy, and counts one that answers wrongly as failed."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from bench import overhead
from bench.cli import main
from bench.overhead import SCENARIOS
from bench.processes import free_ports

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the bench's programs need gcc"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores"),
]

# A proxy that passes bytes on, with one word of the answers changed.
RELAY = """
import asyncio, sys
port, (host, upstream_port) = int(sys.argv[1]), sys.argv[2].removeprefix("http://").split(":")
find, put = sys.argv[3].encode(), sys.argv[4].encode()

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data.replace(find, put))
        await writer.drain()
    writer.close()

async def serve(reader, writer):
    up_reader, up_writer = await asyncio.open_connection(host, upstream_port)
    await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def short_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just long enough for a stream of 0.65 s to begin and end in the measured time."""
    monkeypatch.setattr(overhead, "WARM_SECONDS", 0.1)
    short = [dataclasses.replace(scenario, seconds=0.9 if scenario.tokens else 0.1) for scenario in SCENARIOS]
    monkeypatch.setattr(overhead, "SCENARIOS", short)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def bench(tmp_path: Path, work_dir: Path, find: str, put: str) -> int:
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY)
    (port,) = free_ports(1)
    command = shlex.join([sys.executable, str(relay), "{port}", "{upstream}", find, put])
    options = ["--ours", command, "--port", str(port), "--peers", "", "--repeats", "1"]
    return main(["overhead", *options, "--work-dir", str(work_dir), "--json", str(tmp_path / "out.json")])


def test_a_proxy_is_measured(tmp_path: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, work_dir, "[DONE]", "[DONE]") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    (run,) = report["runs"]["joulegate"]
    for scenario in SCENARIOS:
        assert run[scenario.name]["cpu_ms"] > 0
    assert run["stream, 100/s x 64 tokens"]["cpu_us_token"] > 0
    assert run["peak_mib"] > 5
    printed = capsys.readouterr().out
    assert "| median of 1 | joulegate |" in printed
    assert "met: peak MiB: must <= 80" in printed
    assert "not judged: CPU ms a request, plain, 64 clients: must <= 0.9 x vllm-router" in printed


def test_wrong_answers_are_a_failure(tmp_path: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, work_dir, "[DONE]", "[GONE]") == 1
    printed = capsys.readouterr().out
    assert "| peak MiB | failed |" in printed
    assert "joulegate failed in 1 of 1 passes: stream, 100/s x 64 tokens" in printed
    assert "bad stream status=200" in printed


def test_a_proxy_that_ends_is_a_failure(tmp_path: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ours", f"{sys.executable} -c 'raise SystemExit(\"no config\")'", "--peers", "", "--repeats", "1"]
    assert main(["overhead", *options, "--work-dir", str(work_dir)]) == 1
    assert "the proxy ended at once: no config" in capsys.readouterr().out
