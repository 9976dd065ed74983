"""Where do the bench's own C programs come from? Compiled on first use from bench/native into a cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

SOURCES = {
    "mock": ("mock.c", "mock_answers.c"),
    "loadgen": ("loadgen.c", "calls.c", "requests.c", "samples.c"),
}
HEADERS = ("calls.h", "mock_answers.h", "requests.h", "samples.h")
FLAGS = ("-O2", "-Wall", "-Wextra")


class BenchError(Exception):
    """The bench cannot run; the message says what to do about it."""


@dataclass(frozen=True)
class Programs:
    """The mock engine and the load generator, ready to run."""

    mock: Path
    loadgen: Path


def default_work_dir() -> Path:
    """$XDG_CACHE_HOME/joulegate/bench, by default ~/.cache/joulegate/bench."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "joulegate" / "bench"


def build_programs(work_dir: Path) -> Programs:
    """Compiles what is not there yet. Raises BenchError without a compiler or when it fails."""
    return Programs(mock=_build("mock", work_dir), loadgen=_build("loadgen", work_dir))


def _build(name: str, work_dir: Path) -> Path:
    native = resources.files("bench") / "native"
    texts = {file: (native / file).read_bytes() for file in (*SOURCES[name], *HEADERS)}
    digest = hashlib.sha256(repr((FLAGS, sorted(texts.items()))).encode()).hexdigest()[:12]
    binary = work_dir / f"{name}-{digest}"
    if binary.exists():
        return binary
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise BenchError(
            f"no C compiler for the bench's {name}: install Debian's gcc and libc6-dev (apt-get install gcc libc6-dev)"
        )
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        for file, text in texts.items():
            (Path(folder) / file).write_bytes(text)
        # Renamed when whole, so that a second bench never runs a half-written program.
        built = Path(folder) / name
        command = [compiler, *FLAGS, "-o", str(built), *SOURCES[name], "-lm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(
                f"{compiler} could not compile {name} (Debian: apt-get install gcc libc6-dev): {done.stderr[-800:]}"
            )
        built.replace(binary)
    return binary
