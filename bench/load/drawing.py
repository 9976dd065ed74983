"""Who draws the figures of a page? Where there are many, a process for each core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bench.load.workers import be_quiet

Drawing = Callable[[], bytes]
"""Comes to a PNG; can be sent to another process."""
FEW = 12
"""So many are drawn before other processes have begun."""


def draw(drawings: Sequence[Drawing]) -> list[bytes]:
    """PNGs, in the same order."""
    cores = min(len(os.sched_getaffinity(0)), len(drawings))
    if len(drawings) <= FEW or cores < 2:
        return [_drawn(each) for each in drawings]
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(cores, mp_context=context, initializer=be_quiet)
    try:
        return list(executor.map(_drawn, drawings))
    except BrokenProcessPool:  # killed, as for want of memory
        return [_drawn(each) for each in drawings]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _drawn(drawing: Drawing) -> bytes:
    return drawing()
