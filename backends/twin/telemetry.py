"""What a gateway reads of simulated engines, told to the scheduler in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.twin.device import TwinDevice
from backends.twin.prior import prior_of
from scheduler.energy.caps.view import CardLimits
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import CardsRead, EnergyPrior, EngineCounted, MeterRead

if TYPE_CHECKING:
    from backends.twin.engine import TwinEngine
    from backends.twin.virtual import World

SETTLE_SHARE = 6.0
"""Time constants until a new limit is in force."""


class Telemetry:
    """Of all engines of a world, as exact as the twin is: noise is for benches that look into it.

    `told` may be set to False to hold it back, as when a meter is lost.
    """

    def __init__(self, world: World, seconds: float = 0.5) -> None:
        self._world = world
        self._seconds = seconds
        self._cards: dict[str, CardsRead] = {}
        self.told = True
        self.may_set = True
        """The operator has named the cards."""
        for name, engine in world.engines.items():
            world.tell(EnergyPrior(name, prior_of(engine.calibration), None, True))
        self._read()

    def _read(self) -> None:
        world = self._world
        if self.told:
            for name, engine in world.engines.items():
                self._cards_of(name, engine)
                world.tell(MeterRead(name, self._sample(engine)))
                progress = [
                    (request.id, int(engine.generated(request)))
                    for request in engine.requests.values()
                    if request.first_token_at is not None
                ]
                world.tell(EngineCounted(name, self._counters(engine), tuple(progress)))
        world.time.at(world.time.now + self._seconds, self._read)

    def _cards_of(self, name: str, engine: TwinEngine) -> None:
        event = cards_read(name, engine, self._world.time.now, may_set=self.may_set)
        before = self._cards.get(name)
        if before is None or before._replace(at=event.at) != event:
            self._cards[name] = event
            self._world.tell(event)

    def _sample(self, engine: TwinEngine) -> MeterSample:
        now = self._world.time.now
        return MeterSample(
            now,
            Energy(engine.meter.counter_joules()),
            engine.meter.average_watts(),
            engine.limit.in_force_watts(now),
            engine.sm_clock_mhz < engine.calibration.card.sm_clock_max_mhz,
            "simulated",
        )

    def _counters(self, engine: TwinEngine) -> Counters:
        totals, run = engine.totals, engine._run  # vLLM counts each step, the twin each run
        done = run.done(engine.now) if run is not None else 0
        decode = run.batch.decode if run is not None else 0
        return Counters(
            self._world.time.now,
            float(totals.steps + done),
            float(totals.prompt_tokens),
            None,
            float(totals.generation_tokens + done * decode),
            float(len(engine.running)),
            float(len(engine.requests) - len(engine.running)),
        )


def cards_read(name: str, engine: TwinEngine, now: float, *, may_set: bool) -> CardsRead:
    """What a gateway reads of a simulated engine's cards, as exact as the twin is."""
    card = engine.calibration.card
    limits = TwinDevice(engine, lambda: now).limits()
    assert limits.enforced_watts is not None and limits.default_watts is not None
    return CardsRead(
        name,
        card.gpus,
        CardLimits(
            limits.requested_watts, limits.enforced_watts, limits.default_watts, limits.lowest_watts,
            limits.highest_watts,
        ),
        now,
        may_set,
        SETTLE_SHARE * card.settle_seconds,
        card.sm_clock_max_mhz,
    )  # fmt: skip
