"""What is believed of an engine before it was seen at work? Prices, and how far each may be off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Prices(NamedTuple):
    """Seconds, or joules above idle, for one of each feature of `Work`, before any power limit."""

    step: float
    decode_token: float
    context_token: float
    repeated_token: float
    prefill_token: float
    attention_pair: float


class CapPrior(NamedTuple):
    """The cap layer: slowdown = max(1, onset·demand/limit)^exponent, draw = min(demand, draw·limit), in so far as the
    moving average of demand that the card's limiter acts on is over that already."""

    onset: float = 0.9
    decode_exponent: float = 0.8
    prefill_exponent: float = 0.85
    draw: float = 0.99
    average_seconds: float = 0.05
    """Time constant of that average. Bursts on an H200 said 0.03; of other cards nobody knows: 0 to 3 times this is
    believed."""


@dataclass(frozen=True)
class Prior:
    """Of one engine, all its GPUs together. Uncertainties are relative standard errors of each coefficient.

    `backends.twin.prior.prior_of` makes one from a calibration or a roofline prior.
    """

    time: Prices
    energy: Prices
    idle_watts: float
    cap: CapPrior = field(default_factory=CapPrior)
    prompt_seconds: float = 2e-3
    """Further time of each prefill: a step with prompt tokens is started kernel by kernel where CUDA graphs are for
    decode only. Anything from 0 to twice this is believed."""
    time_uncertainty: float = 0.3
    energy_uncertainty: float = 0.3
    idle_uncertainty: float = 0.3
    cap_uncertainty: float = 0.2
    name: str = ""

    def __post_init__(self) -> None:
        """ValueError for a price or an uncertainty that is not above 0: nothing could ever be learned about it."""
        values = {
            **{f"time.{name}": value for name, value in self.time._asdict().items()},
            **{f"energy.{name}": value for name, value in self.energy._asdict().items()},
            **{f"cap.{name}": value for name, value in self.cap._asdict().items()},
            **{name: getattr(self, name) for name in UNCERTAINTIES},
            "idle_watts": self.idle_watts,
            "prompt_seconds": self.prompt_seconds,
        }
        for name, value in values.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"prior: {name} must be above 0, not {value}")


UNCERTAINTIES = ("time_uncertainty", "energy_uncertainty", "idle_uncertainty", "cap_uncertainty")
