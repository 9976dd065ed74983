"""Which workflows are live, who has been silent for longest, and whose go first where there is no room?

Fair between keys: what one key brings pushes out its own, or what belongs to a key that has as much as this one would
have then; never what belongs to one that has less.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, ItemsView, Sequence, ValuesView

    from scheduler.workflow.workflow import Workflow

    Share = Callable[[str], int]
    """What a key has."""

LOOKED_AT_MAX = 64
"""Of a key's workflows in a line, to find one that can go; all of them busy: there is no room."""
KEYS_MAX = 8
"""Keys that are looked at for that."""
_NONE: OrderedDict[str, Workflow] = OrderedDict()


def size_of(workflow: Workflow) -> int:
    """Nodes and edges, pending ones included."""
    return len(workflow.graph.nodes) + workflow.graph.edge_count + workflow.pending_count


class Line:
    """Live workflows by key and id, those longest without an event first; and the same of each key alone."""

    __slots__ = ("_keys", "_line")

    def __init__(self) -> None:
        self._line: OrderedDict[tuple[str, str], Workflow] = OrderedDict()
        self._keys: dict[str, OrderedDict[str, Workflow]] = {}

    def __len__(self) -> int:
        return len(self._line)

    def get(self, name: tuple[str, str]) -> Workflow | None:
        """One by its key and id."""
        return self._line.get(name)

    def items(self) -> ItemsView[tuple[str, str], Workflow]:
        """All, with their key and id."""
        return self._line.items()

    def values(self) -> ValuesView[Workflow]:
        """All."""
        return self._line.values()

    def oldest(self) -> Workflow | None:
        """The one that has been silent for longest."""
        return next(iter(self._line.values()), None)

    def owners(self) -> list[str]:
        """The keys that have any here."""
        return list(self._keys)

    def of(self, key: str) -> OrderedDict[str, Workflow]:
        """A key's by their ids, for reading, silent ones first."""
        return self._keys.get(key, _NONE)

    def add(self, workflow: Workflow) -> None:
        """At the end; none of its key and id is here."""
        self._line[workflow.key, workflow.id] = workflow
        self._keys.setdefault(workflow.key, OrderedDict())[workflow.id] = workflow

    def touch(self, workflow: Workflow) -> None:
        """To the end."""
        self._line.move_to_end((workflow.key, workflow.id))
        self._keys[workflow.key].move_to_end(workflow.id)

    def take(self, workflow: Workflow) -> None:
        """It is live no more. KeyError if it is not here."""
        del self._line[workflow.key, workflow.id]
        own = self._keys[workflow.key]
        del own[workflow.id]
        if not own:
            del self._keys[workflow.key]

    def validate(self) -> None:
        """Each key's part is what the line says, in its order. AssertionError otherwise."""
        found: dict[str, list[tuple[str, Workflow]]] = {}
        for (key, workflow_id), workflow in self._line.items():
            found.setdefault(key, []).append((workflow_id, workflow))
        assert found == {key: list(own.items()) for key, own in self._keys.items()}


def dispensable(lines: Sequence[Line], asking: str, more: int, share: Share) -> Workflow | None:
    """Who makes room for so much more of the key that asks? Of it and the keys that have as much as it would have, the
    one that has most: its workflow in the first of these lines that has been silent for longest and has no call that
    is live. O(keys)."""
    least = share(asking) + more
    owners = dict.fromkeys([key for line in lines for key in line.owners()])
    keys = [key for key in owners if key == asking or share(key) >= least]
    for _ in range(min(KEYS_MAX, len(keys))):
        key = max(keys, key=lambda key: (share(key), -_silent_since(lines, key)))
        for line in lines:
            for workflow in islice(line.of(key).values(), LOOKED_AT_MAX):
                if not workflow.live_calls:
                    return workflow
        keys.remove(key)
    return None


def _silent_since(lines: Sequence[Line], key: str) -> float:
    return min([next(iter(own.values())).order_at for line in lines if (own := line.of(key))])
