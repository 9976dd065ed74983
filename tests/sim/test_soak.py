"""The soak command plays worlds, and prints the seed of one that fails."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.policies import POLICIES
from tests.sim import soak


def test_a_world_of_each_policy_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(soak, "STEPS", 150)
    assert soak.main(["--events", "1", "--seed", "7"]) == 0
    assert f"under {', '.join(sorted(POLICIES))}: every invariant held" in capsys.readouterr().out


def test_the_seed_of_a_world_that_fails_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forgetful(self: Any, call: Any, now: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(POLICIES["fifo"], "ended", forgetful)
    assert soak.main(["--events", "1", "--seed", "7", "--policy", "fifo"]) == 1
    assert "make soak SOAK_ARGS='--seed 7 --policy fifo --events 1'" in capsys.readouterr().out
