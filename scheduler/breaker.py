"""May an engine be given calls? A circuit breaker fed by probes and by the outcome of calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]
OPEN_SECONDS_MAX = 30.0
GOOD_PROBES_TO_CLOSE = 3
"""So many good probes in a row, after the one that half-opened it, close a breaker although its trial has not ended: a
plain answer can take minutes, and until then everybody would wait. Not the first: an engine that comes back accepts
connections before it can answer calls, and the trial is there to find that out."""


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens and for how long at first; each failed trial doubles the time up to OPEN_SECONDS_MAX."""

    failures_to_open: int = 3
    open_seconds: float = 2.0


class Breaker:
    """Closed: calls flow. Open: none. Half-open: one call at a time tries whether the engine is back.

    Only faults of the connection count (refused, reset, timed out, probe failed), and only in a row: an engine that
    answers 4xx or 5xx is alive. An open breaker does not half-open by time alone but at the first good probe after
    its time, so that no client's call is spent on an engine that is known to be down. A trial that takes long holds
    nobody up for longer than GOOD_PROBES_TO_CLOSE probes.
    """

    __slots__ = ("failures", "good_probes", "open_for_seconds", "open_until", "rule", "state", "trial_running")

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        self.state: BreakerState = "closed"
        self.failures = 0
        self.open_until = 0.0
        self.open_for_seconds = rule.open_seconds
        self.trial_running = False
        self.good_probes = 0
        """Since it is half-open, without a fault between them."""

    def follow(self, rule: BreakerRule, now: float) -> None:
        """Take over another rule. An open breaker stays open for no longer than the new one says."""
        self.rule = rule
        self.open_for_seconds = rule.open_seconds
        self.open_until = min(self.open_until, now + rule.open_seconds)

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
            self.good_probes += 1
            # A second good probe and no traffic: nothing speaks against it.
            if not self.trial_running or self.good_probes >= GOOD_PROBES_TO_CLOSE:
                self.succeeded()
        elif now >= self.open_until:
            self.state = "half_open"
            self.trial_running = False
            self.good_probes = 0

    def _open(self, now: float) -> None:
        self.state = "open"
        self.open_until = now + self.open_for_seconds
        self.trial_running = False
