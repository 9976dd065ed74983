"""May an engine be given calls? A circuit breaker fed by probes and by the outcome of calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]
OPEN_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens and for how long at first; each failed trial doubles the time up to OPEN_SECONDS_MAX."""

    failures_to_open: int = 3
    open_seconds: float = 2.0


class Breaker:
    """Closed: calls flow. Open: none. Half-open: one call at a time tries whether the engine is back.

    Only faults of the connection count (refused, reset, timed out, probe failed), and only in a row: an engine that
    answers 4xx or 5xx is alive. An open breaker does not half-open by time alone but at the first good probe after
    its time, so that no client's call is spent on an engine that is known to be down.
    """

    __slots__ = ("failures", "open_for_seconds", "open_until", "rule", "state", "trial_running")

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        self.state: BreakerState = "closed"
        self.failures = 0
        self.open_until = 0.0
        self.open_for_seconds = rule.open_seconds
        self.trial_running = False

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now."""
        return self.state == "closed" or (self.state == "half_open" and not self.trial_running)

    def sent(self) -> None:
        """A call was sent: in half-open it is the trial."""
        if self.state == "half_open":
            self.trial_running = True

    def trial_ended(self) -> None:
        """The trial ended without telling anything about the engine (its client left): another may try."""
        self.trial_running = False

    def succeeded(self) -> None:
        """The engine answered a call."""
        self.failures = 0
        if self.state != "closed":
            self.state = "closed"
            self.open_for_seconds = self.rule.open_seconds
            self.trial_running = False

    def failed(self, now: float) -> None:
        """A call or a probe failed at the connection."""
        self.failures += 1
        if self.state == "half_open":
            self.open_for_seconds = min(self.open_for_seconds * 2, OPEN_SECONDS_MAX)
            self._open(now)
        elif self.state == "closed" and self.failures >= self.rule.failures_to_open:
            self._open(now)

    def probed(self, healthy: bool, now: float) -> None:
        """A health probe ended."""
        if not healthy:
            self.failed(now)
        elif self.state == "closed":
            self.failures = 0
        elif self.state == "half_open":
            if not self.trial_running:  # a second good probe and no traffic: nothing speaks against it
                self.succeeded()
        elif now >= self.open_until:
            self.state = "half_open"
            self.trial_running = False

    def _open(self, now: float) -> None:
        self.state = "open"
        self.open_until = now + self.open_for_seconds
        self.trial_running = False
