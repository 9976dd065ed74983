"""Whose node is started next? Keys take turns, and within a key its runs: neither many runs nor wide ones push in."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.workflows.run import WorkflowRun


class Turns:
    """Runs with ready nodes, by key. Each stands here once."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, OrderedDict[WorkflowRun, None]] = OrderedDict()
        """The key whose turn it is comes first, and so does its run."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, run: WorkflowRun) -> None:
        """It has a node that is ready: its turn comes behind those that wait already."""
        self._lines.setdefault(run.key_name, OrderedDict())[run] = None

    def take(self, may_start: Callable[[str], bool]) -> WorkflowRun | None:
        """The next run, which stands here no more, of a key that may start something; None if there is none."""
        lines = self._lines
        for _ in range(len(lines)):
            key_name, line = next(iter(lines.items()))
            lines.move_to_end(key_name)
            if may_start(key_name):
                run, _ = line.popitem(last=False)
                if not line:
                    del lines[key_name]
                return run
        return None

    def drop(self, run: WorkflowRun) -> None:
        """It is over."""
        if (line := self._lines.get(run.key_name)) is not None:
            line.pop(run, None)
            if not line:
                del self._lines[run.key_name]
