"""The table `[parking]` of the configuration: when engines that may be parked are woken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from proxy.config_types import Count, Seconds, Table
from scheduler.parking import ParkingRules


class ParkingConfig(Table):
    """When engines with `park = true` are woken. See docs/parking.md."""

    awake_least: Count = 1
    """of each model's engines, so many stay awake"""
    wake_from_calls: Count = 64
    """calls in flight at each engine that is awake, now or by forecast, from which another one is woken"""
    timeout_seconds: Seconds = 60.0
    """for an engine to fall asleep, or to wake up; then it is a failed try"""
    wake_tries: Annotated[int, Field(ge=1, le=20, strict=True)] = 3
    """in a row; then calls that need the engine are refused: 503 `wake_failed`"""
    retry_seconds: Seconds = 1.0
    """from a failed try to the next one; doubles with each"""
    rest_seconds: Seconds = 60.0
    """after the last try, until it is tried again"""
    at_exit: Literal["wake", "leave"] = "wake"
    """what becomes of engines that sleep when the gateway ends"""

    def rules(self) -> ParkingRules:
        """For the scheduler."""
        return ParkingRules(
            self.awake_least, self.wake_from_calls, self.wake_tries, self.retry_seconds, self.rest_seconds
        )


def parking_problems(park: list[bool], awake_least: int) -> list[tuple[tuple[str | int, ...], str]]:
    """Of the configured engines' `park`: (place, what is wrong and the way out) each."""
    if len(park) > awake_least:
        return []
    what = f"would never be: of {len(park)} engines, {awake_least} of each model stay awake (parking.awake_least)"
    way = "add an engine, or leave park out"
    return [(("engines", index, "park"), f"{what}; {way}") for index, wanted in enumerate(park) if wanted]
