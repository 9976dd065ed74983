"""Who decides, and what becomes of it? The policy in force, a guard around it, and the sending of its choices.

A policy may be somebody else's code. One that raises, or chooses what cannot be done, is relieved by `passthrough` at
once: no call is lost for it, and `PolicyFailed` says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.actions import Dispatch, PolicyFailed
from scheduler.policies import make_policy
from scheduler.policies.base import Choice, check_choice
from scheduler.policies.passthrough import Passthrough

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.actions import Action
    from scheduler.policies.base import Policy, View
    from scheduler.state import CallState, EngineState

SOONEST_SECONDS = 0.001
"""A policy that asks to look again now, or before now, does so after this."""
ERROR_CHARACTERS = 512


class Deciding:
    """The policy in force. What it says is carried out here, one choice at a time."""

    def __init__(self, view: View, name: str, options: Mapping[str, object], now: float) -> None:
        self.view = view
        self.policy: Policy = make_policy(name, options)
        self.asked: tuple[str, dict[str, object]] = (name, dict(options))
        """What is configured: also after the policy of that name has failed."""
        self.failed: PolicyFailed | None = None
        """`passthrough` decides because of this."""
        self.error: Exception | None = None
        """The same as it was raised, for its traceback."""
        self.failures = 0
        self.news: list[Action] = []
        self._begin(now)

    def change(self, name: str, options: Mapping[str, object], now: float) -> None:
        """Another decides from now on. KeyError, ValueError: there is none of that name, or with these options; then
        nothing has changed."""
        self.install(make_policy(name, options), now)
        self.asked = (name, dict(options))

    def install(self, policy: Policy, now: float) -> None:
        """The same with one that is made already; what is configured stays as it is."""
        try:
            self.policy.end(now)
        except Exception as error:  # noqa: BLE001  (said; it decides no more)
            self.say("end", error)
        self.policy = policy
        self.failed = self.error = None
        self._begin(now)

    def _begin(self, now: float) -> None:
        try:
            self.policy.begin(self.view, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve("begin", error, now)

    # --- what happens to calls ---

    def arrived(self, call: CallState, now: float) -> None:
        """A call is held."""
        try:
            self.policy.arrived(call, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve("arrived", error, now)

    def ended(self, call: CallState, now: float) -> None:
        """A call is over, or its attempt has failed."""
        try:
            self.policy.ended(call, now)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve("ended", error, now)

    def holds_for(self, engine: str, now: float) -> bool:
        """Whether the policy holds calls that are to run on this engine."""
        try:
            return self.policy.holds_for(engine)
        except Exception as error:  # noqa: BLE001  (said, and relieved)
            self._relieve("holds_for", error, now)
            return True

    # --- decisions ---

    def release(self, now: float, actions: list[Action]) -> float | None:
        """Carry out choices until there is none; returns when to look again, if the policy says."""
        ready, engines = self.view.ready, list(self.view.engines.values())
        while ready.count:
            try:
                choice = self.policy.next(ready, engines, now)
                if choice is None:
                    return None
                if type(choice) is not Choice:
                    return max(now + SOONEST_SECONDS, float(choice))  # type: ignore[arg-type]  # in this order for NaN
                call, engine, priority, _ = choice
                check_choice(choice, ready, engines, now)
            except Exception as error:  # noqa: BLE001  (said, and relieved)
                self._relieve("next", error, now)
                continue
            self._send(choice, engines, now)
            actions.append(Dispatch(call.arrived.call_id, engine.name, priority))
            try:
                self.policy.sent(call, engine, now)
            except Exception as error:  # noqa: BLE001  (said, and relieved)
                self._relieve("sent", error, now)
        return None

    def _send(self, choice: Choice, engines: list[EngineState], now: float) -> None:
        call, engine, priority, why = choice
        view = self.view
        view.ready.remove(call)
        call.engine = engine.name
        call.attempts += 1
        engine.in_flight += 1
        engine.used_at = now
        engine.breaker.sent()
        view.decisions.sent(call, engine, priority, why, self.policy.said_by(call), engines, now)
        view.energy.sent(call.arrived, engine.name, now, call.prefix)
        if call.node is not None:
            view.workflows.call_started(call.arrived.call_id, now)

    # --- the guard ---

    def failed_in_part(self, hook: str, error: Exception) -> PolicyFailed:
        """A part of the policy in force has raised, and is relieved in there."""
        failed = self.say(hook, error)
        self.error = error
        return failed

    def _relieve(self, hook: str, error: Exception, now: float) -> None:
        if type(self.policy) is Passthrough:
            raise error  # there is nothing simpler
        failed = self.say(hook, error)
        before, self.policy = self.policy, Passthrough({})
        self.failed, self.error = failed, error
        try:
            before.end(now)
        except Exception as another:  # noqa: BLE001  (said)
            self.say("end", another)

    def say(self, hook: str, error: Exception) -> PolicyFailed:
        """A policy, or a part of one, has raised."""
        self.failures += 1
        failed = PolicyFailed(self.policy.name, hook, f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS])
        self.news.append(failed)
        return failed
