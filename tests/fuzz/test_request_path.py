"""Does the request path hold for a bounded number of inputs that coverage leads to?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = 20_000


def test_inputs_that_coverage_leads_to_hold() -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or system", exc_type=ImportError)
    command = [sys.executable, "-m", "tests.fuzz.request_path", f"-runs={RUNS}", "-seed=1", "-verbosity=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
