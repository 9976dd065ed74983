"""Which workflows that are over are kept for reading, and which of them go first? Those of the key that has most."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import ItemsView

    from scheduler.workflow.workflow import Workflow


class _Share:
    """What one key has here."""

    __slots__ = ("ids", "nodes")

    def __init__(self) -> None:
        self.ids: OrderedDict[str, None] = OrderedDict()
        """Oldest first."""
        self.nodes = 0


class ClosedWorkflows:
    """By key and id, in the order in which they closed. One key's many workflows push its own out, not another's."""

    def __init__(self) -> None:
        self._line: OrderedDict[tuple[str, str], Workflow] = OrderedDict()
        self._shares: dict[str, _Share] = {}

    def __len__(self) -> int:
        return len(self._line)

    def items(self) -> ItemsView[tuple[str, str], Workflow]:
        """All, with their key and id."""
        return self._line.items()

    def get(self, name: tuple[str, str]) -> Workflow | None:
        """One by its key and id."""
        return self._line.get(name)

    def add(self, workflow: Workflow) -> None:
        """It has closed; none of its key and id is here."""
        self._line[workflow.key, workflow.id] = workflow
        share = self._shares.setdefault(workflow.key, _Share())
        share.ids[workflow.id] = None
        share.nodes += len(workflow.graph.nodes)

    def take(self, name: tuple[str, str]) -> Workflow | None:
        """Take one out, if it is here."""
        workflow = self._line.pop(name, None)
        if workflow is not None:
            share = self._shares[workflow.key]
            del share.ids[workflow.id]
            share.nodes -= len(workflow.graph.nodes)
            if not share.ids:
                del self._shares[workflow.key]
        return workflow

    def oldest(self) -> Workflow | None:
        """The one that closed first."""
        return next(iter(self._line.values()), None)

    def dispensable(self, *, nodes: bool) -> Workflow | None:
        """The oldest of the key that has most workflows here; `nodes`: that has most nodes, since there is no room for
        more of them. O(keys)."""
        shares = self._shares
        if not shares:
            return None
        key = max(shares, key=lambda key: shares[key].nodes if nodes else len(shares[key].ids))
        return self._line[key, next(iter(shares[key].ids))]

    def validate(self) -> None:
        """Each key's share is what the line says. AssertionError otherwise."""
        found: dict[str, tuple[list[str], int]] = {}
        for (key, workflow_id), workflow in self._line.items():
            ids, nodes = found.get(key, ([], 0))
            found[key] = [*ids, workflow_id], nodes + len(workflow.graph.nodes)
        assert found == {key: (list(share.ids), share.nodes) for key, share in self._shares.items()}
