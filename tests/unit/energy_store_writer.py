"""A process that keeps an energy ledger until it is killed: tests/unit/test_energy_store_kill.py starts it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from proxy.energy.config import EnergyConfig
from proxy.energy.store import EnergyStore
from scheduler.energy.bill_accounts import Change, Name


def main() -> None:
    """Book 1 J again and again; say on standard output what has been booked, with the time."""
    store = EnergyStore(Path(sys.argv[1]), EnergyConfig(flush_seconds=0.1), lambda *_, **__: None)
    name = Name("e", "k", "w", "m")
    row = (1_000_000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    booked = 0
    while True:
        now = time.time()
        store.add([Change(name, {"measured": row}, 1, 0.0)], [], now)
        booked += 1
        print(booked, now, store.state().written, flush=True)
        time.sleep(0.005)


if __name__ == "__main__":
    main()
