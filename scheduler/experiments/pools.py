"""How do several experiments, each on engines of its own, and the gateway's policy on the others, decide together?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.experiments.among import Among
from scheduler.policies.base import Choice, Policy, View, check_choice
from scheduler.policies.passthrough import Passthrough
from scheduler.state import ReadyCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scheduler.state import CallState, EngineState

REST = ""
"""Name of the part that no experiment has."""


class Part:
    """A policy with the calls and the engines that are its own."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.ready = ReadyCalls()
        self.calls: dict[str, CallState] = {}


class PoolPolicies(Policy):
    """A part for each experiment, and the rest. `pool_of` says which a call belongs to when it arrives (REST: no
    experiment's); `engines` names the engines of an experiment.

    Experiments come and go while the others' policies go on undisturbed: only the rest's is made anew each time
    (`rest`), since what it sees has changed. A part that raises is `passthrough` from there on, and `failed` hears its
    name, the hook and the error: the others know nothing of it.
    """

    name = "experiment"

    def __init__(
        self, pool_of: Callable[[CallState], str], rest: Callable[[], Policy],
        failed: Callable[[str, str, Exception], None],
    ) -> None:  # fmt: skip
        self.parts: dict[str, Part] = {}
        self._failed = failed
        self._pool_of = pool_of
        self._make_rest = rest
        self._engines: dict[str, frozenset[str] | None] = {}
        self._part_of: dict[str, Part] = {}

    @property
    def uses_workflows(self) -> bool:  # type: ignore[override]
        """Any of them."""
        return any(part.policy.uses_workflows for part in self.parts.values())

    # --- experiments come and go ---

    def add(self, name: str, policy: Policy, engines: frozenset[str] | None) -> None:
        """One more, before `begin` or followed by `take`. `engines` None: all, also those to come."""
        self._engines[name] = engines
        self.parts[name] = Part(name, policy)

    def begin(self, view: View, now: float) -> None:
        """All of them."""
        self._view = view
        for name in list(self.parts):
            self.take(name, now)

    def take(self, name: str, now: float) -> None:
        """An experiment that was added begins."""
        self._leave_rest(now)
        part = self.parts[name]
        for call in sorted(self._view.calls.values(), key=lambda call: call.sequence):
            if call.arrived.call_id not in self._part_of and self._pool_of(call) == name:
                self._enter(part, call)
        self._begin_part(part, now)
        self._begin_rest(now)

    def drop(self, name: str, now: float) -> None:
        """An experiment is over: its calls and engines are the rest's."""
        self._leave_rest(now)
        part = self.parts.pop(name)
        del self._engines[name]
        for call_id in part.calls:
            del self._part_of[call_id]
        self._end(part, now)
        self._begin_rest(now)

    def _leave_rest(self, now: float) -> None:
        if (rest := self.parts.pop(REST, None)) is not None:
            for call_id in rest.calls:
                del self._part_of[call_id]
            self._end(rest, now)

    def _begin_rest(self, now: float) -> None:
        rest = self.parts[REST] = Part(REST, self._make_rest())
        for call in sorted(self._view.calls.values(), key=lambda call: call.sequence):
            if call.arrived.call_id not in self._part_of:
                self._enter(rest, call)
        self._begin_part(rest, now)

    def _begin_part(self, part: Part, now: float) -> None:
        try:
            part.policy.begin(self._part_view(part.name, part), now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve(part, "begin", error, now)

    def _end(self, part: Part, now: float) -> None:
        try:
            part.policy.end(now)
        except Exception as error:  # noqa: BLE001  (said; it decides no more)
            self._failed(part.name, "end", error)

    def _relieve(self, part: Part, hook: str, error: Exception, now: float) -> None:
        if type(part.policy) is Passthrough:
            raise error  # there is nothing simpler
        self._failed(part.name, hook, error)
        self._end(part, now)
        part.policy = Passthrough({})

    def _enter(self, part: Part, call: CallState, *, front: bool = False) -> None:
        self._part_of[call.arrived.call_id] = part
        part.calls[call.arrived.call_id] = call
        if call.engine is None:
            part.ready.add(call, front=front)

    def _part_view(self, name: str, part: Part) -> View:
        engines = Among(self._view.engines, lambda engine: self._has(name, engine))
        return self._view._replace(calls=part.calls, ready=part.ready, engines=engines)

    def _has(self, name: str, engine: str) -> bool:
        if name != REST:
            names = self._engines[name]
            return names is None or engine in names
        return not any(names is None or engine in names for names in self._engines.values())

    # --- a call's life ---

    def arrived(self, call: CallState, now: float) -> None:
        """To its part."""
        part = self.parts.get(self._pool_of(call)) or self.parts[REST]
        self._enter(part, call, front=call.attempts > 0)
        try:
            part.policy.arrived(call, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve(part, "arrived", error, now)

    def sent(self, call: CallState, engine: EngineState, now: float) -> None:
        """To its part."""
        part = self._part_of[call.arrived.call_id]
        part.ready.remove(call)
        try:
            part.policy.sent(call, engine, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve(part, "sent", error, now)

    def ended(self, call: CallState, now: float) -> None:
        """To its part."""
        part = self._part_of.pop(call.arrived.call_id)
        try:
            part.policy.ended(call, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve(part, "ended", error, now)
        del part.calls[call.arrived.call_id]
        if call.engine is None:
            part.ready.remove(call)

    def end(self, now: float) -> None:
        """To all, the last to begin first: what each changed outside is as it was."""
        for part in reversed(self.parts.values()):
            self._end(part, now)

    def said_by(self, call: CallState) -> str:
        """Its part's word."""
        return self._part_of[call.arrived.call_id].policy.said_by(call)

    def next(self, ready: ReadyCalls, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        """The first choice that a part has; else the earliest time at which one wants to look again."""
        again: float | None = None
        for name, part in list(self.parts.items()):
            if not part.ready.count:
                continue
            mine = [engine for engine in engines if self._has(name, engine.name)]
            try:
                choice = self._checked(part, mine, now)
            except Exception as error:  # noqa: BLE001  (said, and relieved)
                self._relieve(part, "next", error, now)
                choice = part.policy.next(part.ready, mine, now)
            if isinstance(choice, Choice):
                return choice
            if choice is not None:
                again = choice if again is None else min(again, choice)
        return again

    @staticmethod
    def _checked(part: Part, engines: Sequence[EngineState], now: float) -> Choice | float | None:
        choice = part.policy.next(part.ready, engines, now)
        if isinstance(choice, Choice):
            check_choice(choice, part.ready, engines, now)
            return choice
        return None if choice is None else float(choice)

    def validate(self) -> None:
        """Each call is in one part, and the parts are whole. AssertionError otherwise."""
        assert sum(len(part.calls) for part in self.parts.values()) == len(self._part_of)
        for part in self.parts.values():
            assert part.ready.count == sum(call.engine is None for call in part.calls.values())
            part.policy.validate()
