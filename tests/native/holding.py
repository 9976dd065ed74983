"""A process that sets limits, started and asked by a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.native.nvml import ROOT, FakeDriver

WAIT_SECONDS = 30.0


class Holder:
    """A process that sets the limit of card 0."""

    def __init__(self, driver: FakeDriver, folder: Path, *options: str, gpu: str = "0") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.native.holder", str(folder), gpu, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **driver.environment},
            cwd=ROOT,
            text=True,
        )
        self.said = self.answer()["said"]

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.wait()}"
        return json.loads(line)

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def watchdog(self) -> int:
        return int(self.ask("watchdog")["pid"])

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(WAIT_SECONDS)

    def leave(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
