"""What do processes cost and hold? CPU time, memory and descriptors from the kernel, and starting and ending them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_CLOCK_SCHED = 2  # the kernel's clock of the time a process ran; Python has no name for another process's clock


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat_fields(int(entry.name))[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the process tree since it began, of all threads and reaped children, alive or not.

    The sum over /proc/PID/task/*/schedstat would go back when a thread ends; the process's own clock keeps what its
    threads used, at the same nanosecond resolution. Children that ended count through their parent, in ticks.
    """
    total = 0.0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):
            fields = _stat_fields(each)
            ran = time.clock_gettime(((~each) << 3) | _CLOCK_SCHED)
            total += ran + (int(fields[13]) + int(fields[14])) * _TICK_SECONDS
    return total


def peak_mib(pid: int) -> float:
    """The sum of the largest resident sizes that the processes of the tree have had, MiB."""
    return sum(_status_kib(each, "VmHWM") for each in process_tree(pid)) / 1024


def resident_kib(pid: int) -> int:
    """What the process tree holds in memory now, KiB."""
    return sum(_status_kib(each, "VmRSS") for each in process_tree(pid))


def open_files(pid: int) -> int:
    """Descriptors of the process tree."""
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in process_tree(pid))


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold anything."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def _status_kib(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes started in this block stay on one core; anywhere if it is None."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, core: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program, its output in `log`, until the block ends; SIGTERM first, SIGKILL after 10 s."""
    with log.open("wb") as output, on_core(core):
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> int:
    """Ends a program and returns its exit code, negative for the signal that ended it."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def cpu_model() -> str:
    """The host's CPU as it names itself, with the number of cores; "unavailable" where it does not say."""
    name = "unavailable"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
