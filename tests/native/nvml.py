"""The fake driver's cards: built once, directed by a script, read as any process would see them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("fake_nvml.c")
CARD = struct.Struct("<10q")
CARDS = 8
NO_PERMISSION, NOT_SUPPORTED = 4, 3
CHILD_SECONDS = 60.0


class Card(NamedTuple):
    """What the driver knows of a card."""

    limit_mw: int
    previous_mw: int
    limit_set_ms: int
    energy_uj: int
    energy_at_ms: int
    lock_low: int
    lock_high: int
    sets: int
    touched: int
    epoch: int

    @property
    def limit_watts(self) -> float:
        """As it was asked for last."""
        return self.limit_mw / 1000


def uuid(index: int) -> str:
    """A card's."""
    return f"GPU-fa4e0000-0000-0000-0000-{index:012d}"


@cache
def library() -> Path:
    """The folder that holds libnvidia-ml.so.1, built for this run of the tests."""
    folder = Path(tempfile.gettempdir()) / f"joulegate-fake-nvml-{os.getuid()}-{SOURCE.stat().st_mtime_ns}"
    target = folder / "libnvidia-ml.so.1"
    if not target.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        partial = folder / f"partial-{os.getpid()}"
        command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(partial), str(SOURCE)]
        subprocess.run(command, check=True, timeout=CHILD_SECONDS)
        partial.rename(target)  # two workers may build it at once
    return folder


class FakeDriver:
    """A folder of state and script."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "state").touch()
        self.lines: list[str] = []
        self.script(*lines)

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to see these cards."""
        return {"LD_LIBRARY_PATH": str(library()), "FAKE_NVML_DIR": str(self.folder), "PYTHONPATH": str(ROOT)}

    def script(self, *lines: str) -> None:
        """Act this out from now on, and nothing else."""
        self.lines = list(lines)
        partial = self.folder / "script.new"
        partial.write_text("".join(f"{line}\n" for line in lines))
        partial.rename(self.folder / "script")

    def add(self, line: str) -> None:
        """Act this out too."""
        self.script(*self.lines, line)

    def card(self, index: int = 0) -> Card:
        """Its state now."""
        data = (self.folder / "state").read_bytes()
        return Card(*CARD.unpack_from(data.ljust(CARD.size * CARDS, b"\0"), index * CARD.size))

    def somebody_sets(self, watts: float, index: int = 0) -> None:
        """Another party moves the cap: nvidia-smi, say."""
        with (self.folder / "state").open("r+b") as file:
            file.seek(index * CARD.size)
            file.write(struct.pack("<2q", round(watts * 1000), round(watts * 1000)))

    def run(self, code: str, *arguments: str) -> Any:
        """Run Python in a process that sees these cards; what it prints last, as JSON."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            timeout=CHILD_SECONDS,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])
