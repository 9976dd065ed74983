"""The table `[caps]` of the configuration: what a power cap must keep, and how fast it may move."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from proxy.config_types import Table
from scheduler.energy.caps.rules import BOUNDS, CapRules

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
REQUIRED = ("ttft_seconds_p95", "itl_seconds_p95")
"""With power.mode = "actuate": what is slow for a chat is fast for a batch, so nothing is safe for every use."""


class CapsConfig(Table):
    """What a power cap must keep, and how fast it may move. Whether caps are set at all is `power.mode`'s."""

    actuator: Literal["power", "clock"] = "power"
    """`power`: a limit in watts; `clock`: an upper bound of the SM clock that stands for as many watts"""
    ttft_seconds_p95: Number | None = None
    """19 of 20 streams begin within this, from sending the call to the engine; needed with power.mode = "actuate\""""
    itl_seconds_p95: Number | None = None
    """19 of 20 calls have a mean gap between their tokens of at most this; needed with power.mode = "actuate\""""
    budget_watts: Number | None = None
    """for the GPUs of all engines together; empty = no budget"""
    floor_share: Number = 0.3
    """no cap below this, nor below the card's lowest limit"""
    slack_use: Number = 0.5
    """share of the tightest workflow's slack that a slower engine may use up, unless the policy says what is left"""
    margin_share: Number = 0.02
    """a lower cap must keep each target with so much of it to spare"""
    untargeted_stretch: Number = 1.01
    """where a target is missing: a step may take so many times as long as under the limit that was found"""
    interval_seconds: Number = 2.5
    """between two decisions, 2 to 5"""
    step_share: Number = 0.05
    """the longest step down"""
    step_seconds: Number = 10.0
    """from one step down to the next, at least"""
    hysteresis_share: Number = 0.005
    """a step down must promise to save so much of the joules a token"""
    calm_seconds: Number = 30.0
    """after a danger: no step down for so long"""
    bar_seconds: Number = 120.0
    """a cap that did not keep a target is not tried again for so long"""
    horizon_seconds: Number = 1800.0
    """how far back answers are looked at for p95"""
    load_seconds: Number = 30.0
    """how far back work is looked at for the load"""
    calls_least: Whole = 12
    """with fewer answers than this within the horizon: no step down"""
    danger_seconds: Number = 10.0
    """how far back answers are looked at for danger: that more than `danger_share` of them miss a target"""
    danger_share: Number = 0.5
    """see `danger_seconds`"""
    danger_calls: Whole = 4
    """and so many at least"""
    queue_looks: Whole = 4
    """the engine's own queue grew at so many decisions in a row: danger"""
    queue_calls: Whole = 8
    """a queue shorter than this is none"""
    stale_seconds: Number = 10.0
    """telemetry older than this is as good as none: back to the limit that was found"""
    yield_seconds: Number | None = None
    """somebody else has set a limit: it is left to them for so long; empty = until an operator says `resume`"""
    failures_max: Whole = 5
    """after so many changes in a row that were not carried out: none until an operator says `resume`"""

    @field_validator("*")
    @classmethod
    def _bounds(cls, value: Any, info: ValidationInfo) -> Any:
        low, high = BOUNDS.get(str(info.field_name), (None, None))
        if low is not None and high is not None and value is not None and not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    def rules(self, mode: Literal["observe", "actuate"]) -> CapRules:
        """For the scheduler."""
        return CapRules(mode=mode, **self.model_dump())

    def missing(self) -> list[str]:
        """What `actuate` needs and is not there."""
        return [name for name in REQUIRED if getattr(self, name) is None]
