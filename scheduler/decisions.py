"""Why did a call run when and where it did, what else could have been done, and what came of it? A bounded log.

A record a call. A policy that predicts says what it expected of
sending now and of sending later; when the call ends, what was not done is set against what was.

*Regret* of a decision = actual − predicted for the alternative that was not taken, in joules and in seconds: positive
where the alternative looked better in hindsight, as far as its prediction was right. Of a call that was held, the first
holding is judged (the alternative: at once); of one that was not, its sending (the alternative: later).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scheduler.state import CallState, EngineState

ALTERNATIVES_MAX = 8
RULES_MAX = 64
"""Of all policies; further ones are counted as `other`."""
ANSWERED = "answered"
_new: Any = tuple.__new__
"""What a named tuple's own constructor calls: two a call are on every call's way."""
AT_ONCE, TURN, RETRY = "at_once", "turn", "retry"
"""Rules of policies that say none: on arrival; when there was room; after a failed attempt."""


class Expected(NamedTuple):
    """What one way to go on was predicted to come to. None = not predicted."""

    seconds: float | None = None
    """From the decision to the answer's end."""
    joules: float | None = None
    """Of this call, the marginal ones, as its answer will say."""


class Why(NamedTuple):
    """A policy's reason, in one word of its own, and its figures at that moment; None = it has none."""

    rule: str
    """As `joule`'s: urgent, covered, full, free, no_slack, interactive."""
    slack_seconds: float | None = None
    """How long the call could still have waited."""
    hold_seconds: float | None = None
    """How long it is meant to be held from now on."""
    now: Expected | None = None
    """Sent now."""
    later: Expected | None = None
    """Held for as long as it could be (where it is sent), or as it is meant to be (where it is held)."""


class Sent(NamedTuple):
    """A choice that was carried out."""

    at: float
    rule: str
    engine: str
    priority: int | None
    beside: int
    """Calls in flight at the engine already."""
    attempts: int
    why: Why | None
    policy: str


class Held:
    """That a policy holds a call back on purpose; it may have said so several times."""

    __slots__ = ("at", "first", "last", "times")

    def __init__(self, why: Why, now: float) -> None:
        self.at, self.first, self.last, self.times = now, why, why, 1


class Record(NamedTuple):
    """What was decided of one call, and what came of it. Times are seconds of the events' clock.

    One flat tuple, made when the call is over: until then its parts lie with the call. Thousands are kept, so that each
    further object of one would be a cache miss when it is forgotten, on every call's way.
    """

    call_id: str
    key: str
    workflow_id: str
    node: str | None
    arrived_at: float
    held: Held | None
    sent: Sent | None
    """The last time."""
    others: tuple[tuple[str, int], ...]
    """Other engines that had room, and their calls in flight."""
    over_at: float | None = None
    outcome: str | None = None
    """`answered`, or the word for why not."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    joules: float | None = None
    """As estimated at its end; known only where the policy had predicted any."""

    def regret(self) -> Expected | None:
        """Actual − predicted of the alternative, of a call that was answered."""
        found = judged(self.held, self.sent)
        if found is None or self.over_at is None or self.outcome != ANSWERED:
            return None
        _, at, other = found
        seconds = None if other.seconds is None else self.over_at - at - other.seconds
        joules = None if other.joules is None or self.joules is None else self.joules - other.joules
        return Expected(seconds, joules)


def judged(held: Held | None, sent: Sent | None) -> tuple[str, float, Expected] | None:
    """(rule, when it was decided, the alternative); None where the policy predicted nothing else."""
    if held is not None:
        return None if held.first.now is None else (held.first.rule, held.at, held.first.now)
    if sent is None or sent.why is None or sent.why.later is None:
        return None
    return sent.rule, sent.at, sent.why.later


def record_of(call: CallState) -> Record:
    """Of a call that is not over."""
    arrived = call.arrived
    return Record(
        arrived.call_id,
        arrived.key,
        arrived.workflow_id,
        arrived.node,
        call.arrived_at,
        call.held,
        call.sent,
        call.others,
    )


class Judged:
    """Of all judged decisions of one rule: how many, and their regret, what is over 0 and what is under it apart."""

    __slots__ = ("count", "joules_less", "joules_more", "seconds_less", "seconds_more")

    def __init__(self) -> None:
        self.count = 0
        self.joules_more = self.joules_less = self.seconds_more = self.seconds_less = 0.0

    def add(self, regret: Expected) -> None:
        """One more."""
        self.count += 1
        if (joules := regret.joules) is not None:
            self.joules_more += max(joules, 0.0)
            self.joules_less += max(-joules, 0.0)
        if (seconds := regret.seconds) is not None:
            self.seconds_more += max(seconds, 0.0)
            self.seconds_less += max(-seconds, 0.0)


class DecisionLog:
    """The decisions of the last `records_max` calls that are over, and counts over all of them."""

    def __init__(self, records_max: int) -> None:
        self.records_max = records_max
        self.counts: dict[tuple[str, str], int] = {}
        """By (policy, rule): calls that were sent."""
        self.judged: dict[tuple[str, str], Judged] = {}
        self._ring: list[Record] = []
        self._next = 0

    def held(self, call: CallState, why: Why, now: float) -> None:
        """The policy holds a call back on purpose; it may say so again as often as it looks at it."""
        held = call.held
        if held is None:
            call.held = Held(why, now)
        else:
            held.last = why
            held.times += 1

    def sent(
        self, call: CallState, engine: EngineState, priority: int | None, why: Why | None, policy: str,
        engines: Sequence[EngineState], now: float,
    ) -> None:  # fmt: skip
        """A choice is carried out; the call counts at its engine already."""
        if why is not None:
            rule = why.rule
        else:
            rule = RETRY if call.attempts > 1 else AT_ONCE if now == call.arrived_at else TURN
        name = (policy, rule)
        counts = self.counts
        if name in counts:
            counts[name] += 1
        else:
            self._count_new(name)
        call.sent = _new(Sent, (now, rule, engine.name, priority, engine.in_flight - 1, call.attempts, why, policy))
        if len(engines) > 1:
            model = call.arrived.model
            others = [(o.name, o.in_flight) for o in engines if o is not engine and o.serves(model) and o.has_room(now)]
            call.others = tuple(others[:ALTERNATIVES_MAX])

    def _count_new(self, name: tuple[str, str]) -> None:
        if len(self.counts) >= RULES_MAX:
            name = ("other", "other")
        self.counts[name] = self.counts.get(name, 0) + 1

    def ended(
        self, call: CallState, now: float, outcome: str, prompt_tokens: int | None = None,
        output_tokens: int | None = None, joules: float | None = None,
    ) -> None:  # fmt: skip
        """A call is over."""
        arrived = call.arrived
        record: Record = _new(Record, (
            arrived.call_id, arrived.key, arrived.workflow_id, arrived.node, call.arrived_at, call.held, call.sent,
            call.others, now, outcome, prompt_tokens, output_tokens, joules,
        ))  # fmt: skip
        ring, place = self._ring, self._next
        if len(ring) < self.records_max:
            ring.append(record)
        else:
            ring[place] = record
            self._next = place + 1 if place + 1 < self.records_max else 0
        if call.held is None and (call.sent is None or call.sent.why is None):
            return
        if (regret := record.regret()) is not None and call.sent is not None:
            rule = call.sent.rule if call.held is None else call.held.first.rule
            name = (call.sent.policy, rule)
            if name not in self.judged and len(self.judged) >= RULES_MAX:
                name = ("other", "other")
            self.judged.setdefault(name, Judged()).add(regret)

    # --- questions ---

    def newest_first(self) -> Iterator[Record]:
        """What is remembered."""
        ring, at = self._ring, self._next
        for place in range(len(ring) - 1, -1, -1):
            yield ring[(at + place) % len(ring)]

    def find(self, call_id: str) -> Record | None:
        """A call's record, if it is still remembered."""
        return next((record for record in self._ring if record.call_id == call_id), None)

    def resize(self, records_max: int) -> None:
        """Remember so many from now on."""
        kept = list(self.newest_first())[:records_max]
        kept.reverse()
        self._ring, self._next, self.records_max = kept, 0, records_max

    def validate(self) -> None:
        """AssertionError for what does not hold."""
        assert len(self._ring) <= self.records_max
        assert not self._ring or 0 <= self._next < len(self._ring)


def described(record: Record, now: float, settled_joules: float | None = None) -> dict[str, Any]:
    """A record for somebody to read. `settled_joules`: of the call's bill, once that is known; else the estimate."""
    arrived_at, held, sent, over_at = record.arrived_at, record.held, record.sent, record.over_at
    holding = sending = came = None
    if held is not None:
        holding = {
            "after_seconds": held.at - arrived_at,
            "times": held.times,
            "first": _why(held.first),
            "last": _why(held.last),
        }
    if sent is not None:
        sending = {
            "after_seconds": sent.at - arrived_at,
            "rule": sent.rule,
            "engine": sent.engine,
            "priority": sent.priority,
            "calls_beside": sent.beside,
            "attempts": sent.attempts,
            "other_engines": [{"engine": name, "calls": calls} for name, calls in record.others],
            "why": None if sent.why is None else _why(sent.why),
        }
    if over_at is not None:
        came = {
            "outcome": record.outcome,
            "seconds_after_arrival": over_at - arrived_at,
            "seconds_after_sending": None if sent is None else over_at - sent.at,
            "prompt_tokens": record.prompt_tokens,
            "output_tokens": record.output_tokens,
            "joules": record.joules if settled_joules is None else settled_joules,
        }
    regret = record.regret()
    return {
        "call_id": record.call_id,
        "key": record.key,
        "workflow": record.workflow_id or None,
        "node": record.node,
        "policy": None if sent is None else sent.policy,
        "arrived_seconds_ago": now - arrived_at,
        "state": "over" if over_at is not None else "held" if sent is None else "running",
        "held": holding,
        "sent": sending,
        "came_of_it": came,
        "regret": None if regret is None else regret._asdict(),
    }


def _why(why: Why) -> dict[str, Any]:
    expected = {name: None if way is None else way._asdict() for name, way in (("now", why.now), ("later", why.later))}
    return {**why._asdict(), **expected}
