"""How long after an edge of a block until the arm's power limit has settled?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from scheduler.energy.caps.rules import CapRules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scheduler.experiments.definition import Arm


class Settling(NamedTuple):
    """A part of the wash-out."""

    seconds: float = 0.0
    says: str = ""
    """Where it is from; empty: no arm sets limits."""
    pace: float = 1.0
    """The gateway's: a second of its log is so many of the experiment."""


def settling_of(arms: Sequence[Arm], config: Path | None, given: float | None) -> Settling:
    """By the gateway's configuration, or by the defaults of `[caps]`; `given` is taken as it is. An arm without a cap
    mode has the gateway's. ConfigError for a configuration that cannot be used."""
    rules, pace, source = CapRules(), 1.0, "the defaults of [caps]"
    mode = "observe"
    if config is not None:
        from proxy.config_file import load

        loaded = load(config, os.environ, {})
        mode, pace, source = loaded.power.mode, loaded.experiments.pace, str(config)
        rules = loaded.caps.rules("observe")
    if given is not None:
        return Settling(given, f"{given:g} s of it until a power limit has settled, as given" if given else "", pace)
    if all((arm.cap_mode or mode) != "actuate" for arm in arms):
        return Settling(pace=pace)
    seconds = rules.descent_seconds * pace
    return Settling(seconds, f"{seconds:g} s of it until a cap has stepped down to its floor, by {source}", pace)
