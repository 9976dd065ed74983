"""Where does the cap stand, and is it ours to move? What was found, asked for and set, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scheduler.energy.caps.decision import Why
    from scheduler.energy.caps.rules import CapRules
    from scheduler.energy.caps.view import EngineView
    from scheduler.events import CapApplied

SAME_WATTS = 1.5
SAME_SHARE = 0.005
"""Drivers round: limits that are no further apart are the same."""
CONFIRM_SECONDS = 15.0
"""A wish whose CapApplied does not come within this counts as failed."""


class Refusal(NamedTuple):
    """Why the cap is not made lower now."""

    why: Why
    words: str
    final: bool
    """Not moved at all, not even up."""


class Standing:
    """Of one engine. Watts of each GPU."""

    def __init__(self, rules: CapRules) -> None:
        self._rules = rules
        self.prior_watts: float | None = None
        """What was found before our first change."""
        self.current_watts: float | None = None
        """The limit as it is, or as it was asked for."""
        self.ours = False
        """We have moved it."""
        self.moved_at = float("-inf")
        self.last_down_at = float("-inf")
        self.failures = 0
        self.yielded = ""
        """Why it is left alone; empty: it is not."""
        self._yielded_until = float("inf")
        self._pending: tuple[float, float, float | None] | None = None
        """A wish without an answer so far: when, its watts, and what was before."""

    # --- what happens ---

    def asked(self, watts: float, now: float, *, down: bool) -> None:
        """A wish goes out."""
        self._pending = now, watts, self.current_watts
        self.current_watts = watts
        self.ours = True
        self.moved_at = now
        if down:
            self.last_down_at = now

    def applied(self, event: CapApplied) -> None:
        """What came of it."""
        if event.by == "other":
            self._yield(event.at, event.applied, event.detail)
            return
        if self._pending is None:
            if event.applied is not None:  # it came too late to be waited for, and it is in force
                self.current_watts, self.moved_at = event.applied, event.at
            return
        _, wished, before = self._pending
        if event.requested is not None and event.requested != wished:
            return  # of a wish before the last: that one's answer follows
        self._pending = None
        if event.applied is None:
            self._failed(before)
            return
        self.failures = 0
        self.current_watts = event.applied
        self.moved_at = event.at

    @property
    def given_up(self) -> bool:
        """It is left alone until `resume`: what of it is still ours must be put back."""
        return bool(self.yielded) or self.failures >= self._rules.failures_max

    def resume(self) -> None:
        """We may again; the limit that is found next is the one to return to."""
        self.yielded = ""
        self.failures = 0
        self.ours = False
        self.prior_watts = self.current_watts = self._pending = None

    def _failed(self, before: float | None) -> None:
        self.failures += 1
        self.current_watts = before

    def _yield(self, now: float, found: float | None, detail: str) -> None:
        theirs = "something else" if found is None else f"{found:g} W"
        self.yielded = detail or f"somebody else set {theirs}: the limit is theirs"
        seconds = self._rules.yield_seconds
        self._yielded_until = float("inf") if seconds is None else now + seconds

    # --- looking ---

    def look(self, now: float, view: EngineView) -> Refusal | None:
        """Bring it up to date with the card; why the cap may not be made lower, if so."""
        if self.yielded and now >= self._yielded_until:
            self.resume()
        if self._pending is not None and now > self._pending[0] + CONFIRM_SECONDS:
            before = self._pending[2]
            self._pending = None
            self._failed(before)
        limits = view.limits
        if limits is not None and not self.yielded:
            self._found(now, limits.requested, now if view.limits_at is None else view.limits_at)
        if self.yielded:
            return Refusal("yielded", self.yielded, final=True)
        if self.failures >= self._rules.failures_max:
            return Refusal("failing", f"{self.failures} changes in a row were not carried out", final=True)
        if limits is None:
            return Refusal("missing", "the card's limit is not known", final=False)
        if self._pending is not None:
            return Refusal("settling", f"{self._pending[1]:g} W are asked for, and not confirmed", final=False)
        if now < self.moved_at + view.settle_seconds:
            return Refusal("settling", "the last change is not yet in force", final=False)
        assert self.current_watts is not None
        if limits.enforced < self.current_watts and not same(limits.enforced, self.current_watts):
            words = (
                f"another limit of {limits.enforced:g} W is in force; ours of {self.current_watts:g} W does not bind"
            )
            return Refusal("limited", words, final=False)
        return None

    def _found(self, now: float, requested: float, read_at: float) -> None:
        if not self.ours or self.current_watts is None:
            self.prior_watts = self.current_watts = requested
            return
        watched = self._rules.actuator == "power" and self._pending is None and read_at > self.moved_at
        if watched and not same(requested, self.current_watts):
            self._yield(now, requested, "")

    def describe(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "prior_watts": self.prior_watts,
            "current_watts": self.current_watts,
            "ours": self.ours,
            "yielded": self.yielded or None,
            "failures": self.failures,
        }


def same(one: float, other: float) -> bool:
    """Whether two limits are the same but for rounding."""
    return abs(one - other) <= max(SAME_WATTS, SAME_SHARE * max(one, other))
