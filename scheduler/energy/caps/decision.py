"""What was decided, and why? For the log, the metrics and GET /admin/caps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from scheduler.actions import SetCap, SetClock
    from scheduler.energy.caps.price import Price

Move = Literal["stay", "down", "up"]
Why = Literal[
    "best",  # no cap that holds is worth a move
    "cheaper",  # down: fewer joules a token, and all holds
    "waiting",  # a lower cap is wanted, and it is too early for the next step
    "not_binding",  # nothing in reach would bind: no cap, nothing claimed
    "idle",  # no work, nothing to decide
    "few_calls",  # too few answers to judge by
    "not_kept",  # up: the present cap does not keep what was promised
    "slo_danger", "queue_grows", "stale", "drift",  # up, at once, to the prior limit
    "late",  # up, at once, as far as a workflow needs that will end late
    "missing",  # something is not known: nothing is made tighter
    "settling",  # the last change is not yet in force, or was not yet confirmed
    "budget",  # the watts of all engines are divided
    "yielded",  # somebody else moved the cap
    "failing",  # changes are not carried out
    "limited",  # another, stricter limit is in force than ours
    "arm",  # an experiment's arm sets no limits
]  # fmt: skip


class Decision(NamedTuple):
    """Of one engine. Watts are of each GPU."""

    engine: str
    at: float
    move: Move
    why: Why
    words: str
    """The reason with its numbers, one line."""
    watts: float | None
    """The limit that should be in force from now on; None: no say in it (yielded, nothing known)."""
    from_watts: float | None = None
    target_watts: float | None = None
    """Where the steps lead: the cap of least predicted joules that holds."""
    prior_watts: float | None = None
    """What was found before the first change, to which dangers return."""
    binding: bool | None = None
    """Whether `watts` is thought to bind; None: not known."""
    predicted: Price | None = None
    """Under `watts`."""
    without: Price | None = None
    """Under the prior limit."""
    action: SetCap | SetClock | None = None
    """What to do, in mode `actuate`; None: nothing."""

    def describe(self) -> dict[str, Any]:
        """JSON types, for GET /admin/caps."""
        told: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "engine", "at", "move", "why", "words", "watts", "from_watts", "target_watts", "prior_watts", "binding"
            )
        }  # fmt: skip
        told["predicted"] = None if self.predicted is None else self.predicted.describe()
        told["without"] = None if self.without is None else self.without.describe()
        told["action"] = None if self.action is None else {type(self.action).__name__: self.action._asdict()}
        return told
