"""Millions of events through the scheduler, every policy and every fault, each invariant checked after each event.

    python -m tests.sim.soak --events 2000000

A world of some four hundred events has a seed of its own; the first that fails is printed, with the command that plays
it again.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from typing import TYPE_CHECKING

from scheduler.eventlog import replay
from scheduler.policies import POLICIES
from tests.sim.test_policies import FlowWorld

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS = 400
WHOLE_EVERY = 16
"""After each event every invariant is checked; those of the graphs that it did not touch, after so many events."""
PROGRESS_SECONDS = 10.0


def play(seed: int, policy: str) -> int:
    """One world from start to end; returns its events. AssertionError, and whatever else, is a fault."""
    world = FlowWorld(seed, policy, changes=seed % 2 == 0)
    world.whole_every = WHOLE_EVERY
    for _ in range(STEPS):
        world.step()
    world.finish()
    for line, event, _, same in replay(world.log):
        assert same, f"line {line}: {type(event).__name__} led to other actions the second time"
    return len(world.log) - 1


def main(argv: Sequence[str] | None = None) -> int:
    """0: all held. 1: a world failed; its seed is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=2_000_000, help="about so many (default: 2000000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first world (default: 1)")
    parser.add_argument("--policy", choices=sorted(POLICIES), help="this one alone (default: all in turns)")
    options = parser.parse_args(argv)
    names = [options.policy] if options.policy else sorted(POLICIES)
    events, seed, said_at = 0, options.seed, time.monotonic()
    while events < options.events:
        for policy in names:
            try:
                events += play(seed, policy)
            except Exception:  # noqa: BLE001  (printed; it is what is looked for)
                traceback.print_exc()
                again = f"make soak SOAK_ARGS='--seed {seed} --policy {policy} --events 1'"
                print(f"FAILED: seed {seed}, policy {policy}; play it again with: {again}")
                return 1
        seed += 1
        if time.monotonic() - said_at > PROGRESS_SECONDS:
            said_at = time.monotonic()
            print(f"{events:,} events, next seed {seed}", flush=True)
    print(f"{events:,} events of seeds {options.seed} to {seed - 1} under {', '.join(names)}: every invariant held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
