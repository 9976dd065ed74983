"""What does a card on another host say, through the agent there, and how is its limit set?

The agent keeps the lease on its host and puts the card back when this process is not heard of any more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args
from urllib.parse import quote

from backends.power.device import HeldElsewhere, Limits, PowerDevice, Reading, Source, Unavailable, Why
from backends.power.jsonhttp import JsonHttp, Reply
from backends.power.sample import READINGS, Sample, failed, from_json
from backends.power.tokens import bearer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class AgentDevice(PowerDevice):
    """One card of one agent."""

    source: ClassVar[Source] = "measured"
    over_network: ClassVar[bool] = True
    can_set_limit = True
    can_lock_clocks = True
    """both until the agent has been asked"""

    def __init__(self, url: str, card: str, token_file: Path, holder: str) -> None:
        self._http = JsonHttp(url, bearer(token_file))
        self._card = card
        self._token_file = token_file
        self._holder = holder
        self._path = f"/v1/devices/{quote(card, safe='')}"
        self.name = f"{card} of {url}"
        self._generation = 0
        self._generation_name: str | None = None
        self.capabilities: frozenset[Reading] = frozenset(READINGS)

    @property
    def identity(self) -> str:
        """Where it is."""
        return f"agent-{self._http.address}-{self._card}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """Where it is, where the token is, and as whom to speak."""
        return {
            "kind": "agent",
            "url": self._http.address,
            "card": self._card,
            "token_file": str(self._token_file.absolute()),
            "holder": self._holder,
        }

    @property
    def generation(self) -> int:
        """Grows when the agent was started again, or has put the card back by itself."""
        return self._generation

    def sample(self, label: str) -> Sample:
        """Everything, in one request."""
        started = time.monotonic()
        try:
            reply = self._answer(self._http.get(self._path, "sample"), "sample")
            found = from_json(label, reply, (started + time.monotonic()) / 2)
            name = str(reply.get("generation"))[:80]
            if name != self._generation_name:
                self._generation, self._generation_name = self._generation + 1, name
            self._learn(reply)
            return found
        except Unavailable as gone:
            return failed(label, self.source, gone.why, gone.detail)
        except ValueError as error:
            return failed(label, self.source, "no_data", f"{self._http.address}: {error}")

    def energy_joules(self) -> float:
        """The counter."""
        return cast("float", self._one("energy_joules"))

    def power_watts(self) -> float:
        """Mean over about the last second."""
        return cast("float", self._one("power_watts"))

    def instant_power_watts(self) -> float:
        """Over the last tens of milliseconds."""
        return cast("float", self._one("instant_power_watts"))

    def limits(self) -> Limits:
        """All power limits."""
        return cast("Limits", self._one("limits"))

    def set_limit_watts(self, watts: float) -> None:
        """HeldElsewhere where another gateway has the card; no_permission where the agent does not actuate."""
        self._post("limit", "set_limit", {"watts": watts})

    def sm_clock_mhz(self) -> float:
        """Of the multiprocessors."""
        return cast("float", self._one("sm_clock_mhz"))

    def temperature_celsius(self) -> float:
        """Of the die."""
        return cast("float", self._one("temperature_celsius"))

    def throttle_reasons(self) -> frozenset[str]:
        """Why the clock is low."""
        return cast("frozenset[str]", self._one("throttle_reasons"))

    def persistence_mode(self) -> bool:
        """Whether the driver stays loaded."""
        return cast("bool", self._one("persistence_mode"))

    def lock_sm_clock_mhz(self, lowest: float, highest: float) -> None:
        """Through the agent."""
        self._post("clock", "sm_clock_lock", {"lowest_mhz": lowest, "highest_mhz": highest})

    def unlock_sm_clock(self) -> None:
        """Through the agent."""
        self._post("clock", "sm_clock_lock", {"lowest_mhz": None, "highest_mhz": None})

    def renew(self) -> None:
        """We are still there."""
        self._post("lease", "lease", {})

    def let_go(self) -> None:
        """Have the agent put the card back, if that is still ours to ask."""
        body = {"holder": self._holder}
        reply = self._http.post(f"{self._path}/lease", body, "lease", method="DELETE")
        if reply.status != 409:  # somebody else's by now
            self._answer(reply, "lease")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _learn(self, reply: Mapping[str, Any]) -> None:
        """What the agent says that the card can do, and the agent may do."""
        able = reply.get("capabilities")
        if isinstance(able, list):
            self.capabilities = frozenset(name for name in READINGS if name in able)
        self.name = str(reply.get("name", self.name))[:80]
        self.can_set_limit = reply.get("can_set_limit") is True
        self.can_lock_clocks = reply.get("can_lock_clocks") is True

    def _one(self, reading: Reading) -> object:
        sample = self.sample(self._card)
        value = getattr(sample, reading)
        if value is None:
            why = sample.missing.get(reading, "no_data" if sample.state == "ok" else sample.state)
            raise Unavailable(reading, why, sample.detail)
        return cast("object", value)

    def _post(self, what: str, reading: str, fields: Mapping[str, Any]) -> None:
        reply = self._http.post(f"{self._path}/{what}", {"holder": self._holder, **fields}, reading)
        if reply.status == 400:
            raise ValueError(reply.message())
        if reply.status == 409:
            raise HeldElsewhere(reading, f"agent {self._http.address}: {reply.message()}")
        self._answer(reply, reading)

    def _answer(self, reply: Reply, reading: str) -> Any:
        if reply.status == 200 and reply.body is not None:
            return reply.body
        why: Why = "no_permission" if reply.status in (401, 403) else "no_data"
        error = reply.body.get("error") if isinstance(reply.body, dict) else None
        if isinstance(error, dict) and error.get("code") in get_args(Why):
            why = error["code"]
        raise Unavailable(reading, why, f"agent {self._http.address}: HTTP {reply.status}: {reply.message()}")
