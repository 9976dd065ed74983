"""The ways in which a client has the same workflow run: they differ in what the gateway is told, never in the prompts.

`native`: submitted whole. `parrot`: as calls and variables of Parrot's API. `hinted`: call by call, each with its place
in headers. `bare`: call by call, with nothing said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workloads.ways.calls import play_bare, play_hinted
from workloads.ways.native import play_native
from workloads.ways.parrot import play_parrot

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from workloads.played import Arrival, PlayedWorkflow
    from workloads.ways.line import Line

    Way = Callable[[Line, Arrival, float], Coroutine[Any, Any, PlayedWorkflow]]
    """Plays a workflow that should have begun at a time of the event loop's clock."""

WAYS: dict[str, Way] = {"native": play_native, "parrot": play_parrot, "hinted": play_hinted, "bare": play_bare}
