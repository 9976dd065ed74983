"""A scheduler before one simulated engine in virtual time, with everything read of it: streams that never end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin import calibration as calibrations
from backends.twin.content import Piece, runs_of_pieces
from backends.twin.device import TwinDevice
from backends.twin.engine import TwinEngine
from backends.twin.request import Request
from backends.twin.telemetry import Telemetry
from backends.twin.virtual import World
from scheduler.actions import SetCap, WakeAt
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.caps import CapRules
from scheduler.eventlog import event_line, head_line
from scheduler.events import CallArrived, CapApplied, CardsRead, EngineSpec

if TYPE_CHECKING:
    from backends.twin.virtual import Answer
    from scheduler.actions import Action
    from scheduler.events import Event

H200 = calibrations.load("h200-llama-3.1-8b")
ACTUATE = CapRules(mode="actuate", ttft_seconds_p95=5.0, itl_seconds_p95=0.1)
OUTPUT, PROMPT = 200, 200
CHECKED_EACH = 97
"""Events: some thousands of workflows are kept, and each check looks at all of them."""


class Scene:
    """`batch` clients, each with one stream at a time, a workflow each where there is a deadline."""

    def __init__(
        self,
        rules: CapRules = ACTUATE,
        *,
        batch: int = 64,
        deadline_ms: float | None = None,
        log: list[str] | None = None,
    ) -> None:
        self.scheduler = Scheduler(SchedulerConfig((EngineSpec("e", 512),), caps=rules), 0.0)
        self.log = log
        if log is not None:
            log.append(head_line(self.scheduler.config, 0.0))
        self.set: list[SetCap] = []
        self.woken: list[float] = []
        self.carried_out = True
        """Else wishes are seen and nothing comes of them."""
        self.waiting: float | None = None
        """Said of the engine's queue in place of the truth."""
        self.engine = TwinEngine(H200)
        self.world = World(self, {"e": self.engine})
        self._number = self._events = 0
        self._deadline_ms = deadline_ms
        self.open = True
        self.telemetry = Telemetry(self.world)
        for _ in range(batch):
            self._send()

    @property
    def now(self) -> float:
        return self.world.time.now

    @property
    def limit_watts(self) -> float:
        return TwinDevice(self.engine, lambda: self.now).limits().requested_watts

    def handle(self, event: Event, now: float) -> list[Action]:
        """The scheduler, checked and noted."""
        if self.waiting is not None and (counters := getattr(event, "counters", None)) is not None:
            event = event._replace(counters=counters._replace(waiting=self.waiting))  # type: ignore[union-attr,call-arg]
        actions = self.scheduler.handle(event, now)
        if self.log is not None:
            self.log.append(event_line(event, now, actions))
        self._events += 1
        if self._events % CHECKED_EACH == 0:
            self.scheduler.validate()
        self.set += [action for action in actions if isinstance(action, SetCap)]
        self.woken += [action.at for action in actions if isinstance(action, WakeAt)]
        if self.carried_out:
            return actions
        return [action for action in actions if not isinstance(action, SetCap)]

    def run(self, seconds: float) -> None:
        self.world.time.run(self.now + seconds)

    def somebody_sets(self, watts: float) -> None:
        self.engine.set_limit_watts(watts, self.now)

    def answer(self, requested: float, applied: float | None) -> None:
        self.world.tell(CapApplied("e", requested, applied, applied, self.now))

    def cards(self) -> CardsRead:
        found = self.scheduler.caps.engines["e"].cards
        assert found is not None
        return found

    def why(self) -> str:
        last = self.scheduler.caps.fleet.controllers["e"].last
        assert last is not None
        return last.why

    def _send(self) -> None:
        self._number += 1
        name = f"c{self._number}"
        pieces = runs_of_pieces([Piece(name, PROMPT + OUTPUT)], H200.engine.block_tokens)
        workflow = f"w{self._number}" if self._deadline_ms is not None else ""
        arrived = CallArrived(
            name, "-", None, workflow, PROMPT, OUTPUT, deadline_ms=self._deadline_ms, streamed=True, final=True
        )
        self.world.call(arrived, Request(name, PROMPT, OUTPUT, pieces), self._answered)

    def _answered(self, answer: Answer) -> None:
        if self.open and answer.reason is None:
            self._send()
