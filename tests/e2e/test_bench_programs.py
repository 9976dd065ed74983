"""The bench's own C programs against each other: what the mock does, the load generator counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import soak
from bench.overhead import wait_until_answers
from bench.processes import free_ports, running
from bench.programs import FLAGS, SOURCES, Programs, build_programs

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the bench's programs need gcc")
TOKENS = str(soak.TOKENS)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return build_programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def mock_port(programs: Programs, tmp_path: Path) -> Iterator[int]:
    soak.write_bodies(tmp_path)
    (port,) = free_ports(1)
    with running([str(programs.mock), str(port)], tmp_path / "mock.log") as process:
        wait_until_answers(port, process, (tmp_path / "plain.json").read_bytes(), tmp_path / "mock.log")
        yield port


def load(programs: Programs, port: int, folder: Path, *options: str) -> dict[str, Any]:
    body = folder / "plain.json"
    command = [str(programs.loadgen), "-p", str(port), "-c", "8", "-d", "30", "-w", "0", "-f", str(body), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def body_with(folder: Path, **changes: Any) -> str:
    path = folder / "changed.json"
    path.write_text(json.dumps(json.loads((folder / "plain.json").read_text()) | changes))
    return str(path)


def test_sources_have_no_warnings() -> None:
    native = Path(soak.__file__).parent / "native"
    files = [file for files in SOURCES.values() for file in files]
    subprocess.run(
        ["gcc", "-fsyntax-only", *FLAGS, "-Wconversion", "-Wshadow", "-Werror", *files], cwd=native, check=True
    )


def test_programs_are_compiled_once(programs: Programs) -> None:
    before = programs.mock.stat().st_mtime_ns
    assert build_programs(programs.mock.parent) == programs
    assert programs.mock.stat().st_mtime_ns == before


def test_whole_streams(programs: Programs, mock_port: int, tmp_path: Path) -> None:
    report = load(programs, mock_port, tmp_path, "-m", "200", "-n", TOKENS)
    assert (report["done"], report["errors"], report["left"], report["reconnects"]) == (200, 0, 0, 0)
    assert report["chunks"] == 200 * soak.TOKENS
    assert report["ttft_us"]["n"] == 200


def test_short_streams_are_errors(programs: Programs, mock_port: int, tmp_path: Path) -> None:
    report = load(programs, mock_port, tmp_path, "-m", "50", "-n", str(soak.TOKENS + 1))
    assert (report["done"], report["errors"]) == (0, 50)
    assert report["first_error"].startswith("bad stream status=200")


def test_open_loop_counts_arrivals(programs: Programs, mock_port: int, tmp_path: Path) -> None:
    report = load(programs, mock_port, tmp_path, "-m", "40", "-r", "400", "-n", TOKENS)
    assert (report["sent"], report["done"], report["errors"]) == (40, 40, 0)


@pytest.mark.parametrize(("fault", "expect"), [(1, "500"), (1, "5"), (2, "any"), (3, "cut")])
def test_faults_are_expected_ends(programs: Programs, mock_port: int, tmp_path: Path, fault: int, expect: str) -> None:
    other = f"1:{expect}:{body_with(tmp_path, mock_fault=fault)}"
    report = load(programs, mock_port, tmp_path, "-m", "50", "-n", TOKENS, "-e", other)
    assert (report["expected"], report["errors"], report["ended"]) == (50, 0, 50)


@pytest.mark.parametrize(("fault", "expect"), [(1, "4"), (2, "cut"), (3, "good"), (0, "cut"), (0, "503")])
def test_another_end_than_expected_is_an_error(
    programs: Programs, mock_port: int, tmp_path: Path, fault: int, expect: str
) -> None:
    other = f"1:{expect}:{body_with(tmp_path, mock_fault=fault)}"
    report = load(programs, mock_port, tmp_path, "-m", "50", "-n", TOKENS, "-e", other)
    assert (report["expected"], report["errors"], report["ended"]) == (0, 50, 50)


@pytest.mark.parametrize("when", soak.LEAVES)
def test_clients_that_leave(programs: Programs, mock_port: int, tmp_path: Path, when: str) -> None:
    slow = body_with(tmp_path, seed=50_000)
    report = load(programs, mock_port, tmp_path, "-m", "60", "-n", TOKENS, "-x", f"{when}:1", "-e", f"1:good:{slow}")
    assert report[f"left_{when}"] == 60
    assert (report["errors"], report["done_all"], report["ended"]) == (0, 0, 60)


def test_closed_connections_are_reopened(programs: Programs, mock_port: int, tmp_path: Path) -> None:
    report = load(programs, mock_port, tmp_path, "-m", "80", "-n", TOKENS, "-k", "1")
    assert (report["done"], report["errors"], report["reconnects"]) == (80, 0, 80)
