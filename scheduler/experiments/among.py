"""Some of the engines, as a policy's view has them: which, may change at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scheduler.state import EngineState


class Among(Mapping[str, "EngineState"]):
    """Those of `engines` of which `holds` says so. Nothing is copied."""

    def __init__(self, engines: Mapping[str, EngineState], holds: Callable[[str], bool]) -> None:
        self._engines = engines
        self._holds = holds

    def __getitem__(self, name: str) -> EngineState:
        """KeyError: it is not among them."""
        if not self._holds(name):
            raise KeyError(name)
        return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._engines if self._holds(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)
