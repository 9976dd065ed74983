"""The table `[energy]` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from proxy.config_types import Count, Switch, Table

HOURS = 24
Factor = Annotated[float, Field(ge=0, le=1e6, strict=True, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=36_500, strict=True, allow_inf_nan=False)]


class EnergyConfig(Table):
    """What is done with joules: how they are counted, kept, and turned into grams and money."""

    window_seconds: Annotated[float, Field(ge=2, le=60, strict=True)] = 2.4
    """length of the windows that are billed and learned from; the meter cannot tell shorter ones"""
    store: Switch = True
    """keep the ledger in `energy.db` in state_dir; false, or without state_dir: in memory"""
    store_bytes: Annotated[int, Field(ge=1_048_576, le=2**40, strict=True)] = 268_435_456
    """of the ledger; over it the oldest hours are dropped. In memory at most 64 MiB"""
    minutes_days: Days = 2.0
    """sums are kept by minute for so long, then by hour"""
    retention_days: Days = 400.0
    """sums are kept at all"""
    accounts: Count = 10_000
    """workflows kept apart while their joules are counted; others are counted together, by key"""
    settled_calls: Count = 16_384
    """calls whose bill can be read after their end"""
    share_prefixes: Literal["all", "key"] = "all"
    """who shares the cost of a common prefix: `all` that used it, as they share the cache, or those of one `key`"""
    budgets_without_energy: Literal["pass", "refuse"] = "pass"
    """a call that has a budget of joules where neither a meter nor a model tells its energy: `pass` counts it as
    unknown, `refuse` answers 429 `energy_unavailable`"""
    workflow_budgets: Count = 10_000
    """workflows with a budget of joules that are remembered; the use of the one used longest ago is forgotten"""
    carbon_grams_per_kwh: Factor | None = None
    """CO2 equivalent of a kilowatt-hour; shown beside joules as the operator's factor"""
    carbon_hours: tuple[Factor, ...] = ()
    """the same for each hour of the day, UTC: 24 numbers"""
    price_per_kwh: Factor | None = None
    """price of a kilowatt-hour; shown beside joules as the operator's factor"""
    price_hours: tuple[Factor, ...] = ()
    """the same for each hour of the day, UTC: 24 numbers"""
    price_currency: Annotated[str, Field(max_length=16)] = "EUR"
    """what it is called"""
    flush_seconds: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.5
    """between two writes to the ledger; so much is missing after a crash at most"""

    @field_validator("carbon_hours", "price_hours")
    @classmethod
    def _whole_day(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and len(value) != HOURS:
            raise ValueError(f"must be {HOURS} numbers, one for each hour of the day in UTC, not {len(value)}")
        return value

    def carbon_by_hour(self) -> tuple[float, ...] | None:
        """Grams a kilowatt-hour for each hour, UTC; None: no factor is given. The table goes before the number."""
        return self.carbon_hours or _all_day(self.carbon_grams_per_kwh)

    def price_by_hour(self) -> tuple[float, ...] | None:
        """Money a kilowatt-hour for each hour, UTC; None: no price is given. The table goes before the number."""
        return self.price_hours or _all_day(self.price_per_kwh)


def _all_day(value: float | None) -> tuple[float, ...] | None:
    return None if value is None else (value,) * HOURS
