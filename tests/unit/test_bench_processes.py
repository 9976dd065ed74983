"""What the bench reads about processes is what those processes used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")

BURN = "import time\ndef burn():\n while time.thread_time() < 0.05: pass\n"


@contextmanager
def waiting_child(code: str) -> Iterator[tuple[int, str]]:
    """A Python process that ran `code`, printed one line, and now waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nimport sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline()
    finally:
        process.communicate()


def test_threads_that_ended_are_counted() -> None:
    code = BURN + "import threading\nt = threading.Thread(target=burn); t.start(); t.join()\n"
    with waiting_child(code + "print(time.process_time(), flush=True)") as (pid, told):
        assert processes.cpu_seconds(pid) >= float(told) > 0.05


def test_children_that_ended_are_counted() -> None:
    code = BURN + "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', " + repr(BURN + "burn()") + "])\n"
    with waiting_child(code + "t = os.times(); print(t[2] + t[3], flush=True)") as (pid, told):
        assert processes.cpu_seconds(pid) > float(told) > 0


def test_children_belong_to_the_tree() -> None:
    code = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'])\n"
    with waiting_child(code + "print(child.pid, flush=True)") as (pid, told):
        assert set(processes.process_tree(pid)) == {pid, int(told)}
        assert processes.resident_kib(pid) > 0
        assert processes.peak_mib(pid) > 0


def test_open_files_are_counted() -> None:
    nine = "import os\nkept = [open(os.devnull) for _ in range(9)]\nprint(flush=True)"
    with waiting_child(nine) as (many, _), waiting_child("print(flush=True)") as (few, _):
        assert processes.open_files(many) - processes.open_files(few) == 9


def test_pinned_processes_stay_on_their_core(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    with processes.running([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", core) as process:
        assert os.sched_getaffinity(process.pid) == {core}
    assert os.sched_getaffinity(0) == allowed


def test_running_ends_what_it_started(tmp_path: Path) -> None:
    code = "import sys, time; print('up', flush=True); time.sleep(600)"
    with processes.running([sys.executable, "-c", code], tmp_path / "log") as process:
        assert process.poll() is None
    assert process.returncode is not None
    assert processes.end(process) == process.returncode


def test_free_ports_differ() -> None:
    assert len(set(processes.free_ports(20))) == 20
