"""What must a cap keep, and how fast may it move? Configuration of the cap controller."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Literal

Mode = Literal["observe", "actuate"]
EngineMode = Literal["off", "observe", "actuate"]
"""Of one engine, while an experiment says so; off: nothing is decided."""
Actuator = Literal["power", "clock"]


class CapRulesError(ValueError):
    """Rules that cannot be used; the message names the key and the way out."""


@dataclass(frozen=True, slots=True)
class CapRules:
    """Of one controller. Shares are of the card's default limit (its TDP) unless it says otherwise.

    The two SLO targets have no safe default: what is slow for a chat is fast for a batch. `actuate` is refused without
    them (CapRulesError). `observe` has `untargeted_stretch` in their place: only what costs next to no time is advised.
    """

    mode: Mode = "observe"
    """observe: decide and say so, touch nothing. actuate: have it set."""
    actuator: Actuator = "power"
    """power: a limit in watts. clock: an upper bound of the SM clock that stands for as many watts (`clock.py`)."""

    # --- what must hold ---
    ttft_seconds_p95: float | None = None
    """19 of 20 first tokens come within this, from sending a call to the engine."""
    itl_seconds_p95: float | None = None
    """19 of 20 calls have a mean gap between their tokens of at most this."""
    slack_use: float = 0.5
    """Share of the tightest workflow's slack that a slower engine may use up; the rest is for surprises."""
    margin_share: float = 0.02
    """A lower cap must keep each target with so much of it to spare; the present cap only the target itself. Without
    the gap between the two, a cap at the edge would go down and up for ever."""
    untargeted_stretch: float = 1.01
    """Where a target is missing: a step may take so many times as long as under the prior limit, no longer."""
    floor_share: float = 0.3
    """Never below this, nor below the card's lowest limit: under 30 % of TDP the cap layer was never measured."""

    # --- how it moves ---
    interval_seconds: float = 2.5
    """Between two decisions, 2 to 5: the energy counter says nothing about less than 2 s."""
    step_share: float = 0.05
    """The longest step down…"""
    step_seconds: float = 10.0
    """…and the least time from one to the next: so each step is seen in answers before the next."""
    hysteresis_share: float = 0.005
    """A step down must promise to save so much of the joules a token; noise alone promises less."""
    calm_seconds: float = 30.0
    """After a danger: no step down for so long."""
    bar_seconds: float = 120.0
    """A cap under which a target was missed is not tried again for so long, nor any below it."""

    # --- what it looks at ---
    horizon_seconds: float = 1800.0
    """How far back answers are looked at for p95."""
    load_seconds: float = 30.0
    """How far back work is looked at for the offered load."""
    calls_least: int = 12
    """With fewer answers within the horizon than this, no step down."""
    danger_seconds: float = 10.0
    """How far back answers are looked at for danger…"""
    danger_share: float = 0.5
    """…which is that more than this share of them missed a target: ten times what a p95 allows,…"""
    danger_calls: int = 4
    """…and so many at least."""
    queue_looks: int = 4
    """The engine's waiting queue grew at so many decisions in a row: danger."""
    queue_calls: int = 8
    """A queue shorter than this is no danger."""
    stale_seconds: float = 10.0
    """Telemetry older than this is as good as none."""
    yield_seconds: float | None = None
    """Somebody else moved the cap: leave it to them for so long; None = until `resume`."""
    failures_max: int = 5
    """So many changes in a row that were not carried out: stop until `resume`."""

    # --- several engines ---
    budget_watts: float | None = None
    """For the GPUs of all engines together; None = no budget."""

    @property
    def descent_seconds(self) -> float:
        """How long it takes at the least to step down to the floor: until a cap has settled, whatever it comes to."""
        return ceil((1.0 - self.floor_share) / self.step_share - 1e-9) * self.step_seconds + self.interval_seconds

    def __post_init__(self) -> None:
        """CapRulesError, with the key's name, for a value that cannot be used."""
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise CapRulesError(f"caps.{name} must be from {low:g} to {high:g}, not {value:g}")
        if self.mode == "actuate":
            for name in ("ttft_seconds_p95", "itl_seconds_p95"):
                if getattr(self, name) is None:
                    raise CapRulesError(
                        f'caps.{name} is required with mode = "actuate": no value is safe for every use;'
                        ' set it, or leave the mode at "observe"'
                    )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The keys that a configuration may have."""
        return tuple(field.name for field in fields(cls))


BOUNDS: dict[str, tuple[float, float]] = {
    "ttft_seconds_p95": (0.001, 3600.0),
    "itl_seconds_p95": (0.0005, 60.0),
    "slack_use": (0.0, 1.0),
    "margin_share": (0.0, 0.5),
    "untargeted_stretch": (1.0, 2.0),
    "floor_share": (0.05, 1.0),
    "interval_seconds": (2.0, 5.0),
    "step_share": (0.005, 0.05),
    "step_seconds": (10.0, 600.0),
    "hysteresis_share": (0.001, 0.2),
    "calm_seconds": (0.0, 3600.0),
    "bar_seconds": (0.0, 86_400.0),
    "horizon_seconds": (10.0, 7200.0),
    "load_seconds": (5.0, 300.0),
    "calls_least": (1, 500),
    "danger_seconds": (2.0, 120.0),
    "danger_share": (0.05, 0.95),
    "danger_calls": (1, 500),
    "queue_looks": (2, 20),
    "queue_calls": (1, 10_000),
    "stale_seconds": (3.0, 120.0),
    "yield_seconds": (1.0, 604_800.0),
    "failures_max": (1, 100),
    "budget_watts": (1.0, 1e7),
}
"""Both ends included. `step_share` and `step_seconds` can only be made more careful."""
