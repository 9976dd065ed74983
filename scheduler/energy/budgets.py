"""May this key, or this workflow, use more joules? Budgets, with calls under way counted in."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, NamedTuple

from scheduler.quotas import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

Unavailable = Literal["pass", "refuse"]
"""What happens to a call with a budget whose energy nobody can tell: it passes and is counted as unknown, or it is
refused. Unknown is never 0: `unknown_calls` says of each budget how many calls it does not know."""

WORKFLOWS_MAX = 10_000
CALLS_MAX = 65_536


class JouleQuota(NamedTuple):
    """What one API key may use: marginal GPU joules in each period."""

    name: str
    budget_joules: float
    budget_seconds: float = 86_400.0


class JouleUse:
    """One budget and what of it is used. Reserved: for calls that are not settled, what they are expected to use, or
    thought to have used. Never negative, though shared prefixes may give back more than was used in this period."""

    __slots__ = ("budget_joules", "ends_at", "reserved_joules", "seconds", "unknown_calls", "used_joules")

    def __init__(self, budget_joules: float, seconds: float | None, now: float) -> None:
        self.budget_joules = budget_joules
        self.seconds = seconds
        """Length of the period; None: it has none."""
        self.ends_at = None if seconds is None else now + seconds
        self.used_joules = 0.0
        self.reserved_joules = 0.0
        self.unknown_calls = 0
        """Calls of this period whose energy is unavailable."""

    def pass_time(self, now: float) -> None:
        """A new period begins with nothing used. What is reserved goes on."""
        if self.ends_at is None or self.seconds is None or now < self.ends_at:
            return
        self.ends_at += (int((now - self.ends_at) // self.seconds) + 1) * self.seconds
        self.used_joules = 0.0
        self.unknown_calls = 0

    @property
    def left_joules(self) -> float:
        """May be below 0: a call is never cut off for its budget's sake."""
        return self.budget_joules - self.used_joules - self.reserved_joules

    def use(self, joules: float) -> None:
        """Book some; below 0: give back."""
        self.used_joules = max(0.0, self.used_joules + joules)


class _Open(NamedTuple):
    key: str
    workflow: tuple[str, str] | None
    joules: float | None


class JouleBudgets:
    """Of all keys and workflows that have one; any other call costs nothing here.

    A call is reserved for at its admission (`admit`), reckoned with its estimate at its end (`ended`), and booked when
    its bill is settled (`settled`). A budget that is used up refuses the next call and lets those under way finish.
    """

    def __init__(
        self, quotas: Iterable[JouleQuota], now: float, *, unavailable: Unavailable = "pass",
        workflows_max: int = WORKFLOWS_MAX, calls_max: int = CALLS_MAX,
    ) -> None:  # fmt: skip
        self.unavailable: Unavailable = unavailable
        self.workflows_max = workflows_max
        """Budgets of workflows that are kept; of one used longer ago the use is forgotten, and it starts anew."""
        self.calls_max = calls_max
        """Calls that are followed until they are settled; of one that is too many, its reservation is what it used."""
        self.by_key = {quota.name: JouleUse(quota.budget_joules, quota.budget_seconds, now) for quota in quotas}
        self.by_workflow: OrderedDict[tuple[str, str], JouleUse] = OrderedDict()
        self.forgotten_workflows = 0
        self._calls: dict[str, _Open] = {}

    @property
    def open_calls(self) -> int:
        """Calls that are followed: with a budget, and not settled."""
        return len(self._calls)

    def admit(
        self, call_id: str, key: str, workflow_id: str, workflow_budget_joules: float | None,
        expected_joules: float | None, now: float,
    ) -> Refusal | None:  # fmt: skip
        """Reserve what a call is expected to use (None: nobody can tell), or say why not; then nothing is reserved.

        `workflow_budget_joules`: as the call or the workflow's declaration says; the last that was said holds. Reasons:
        `key_joule_budget`, `workflow_joule_budget`, `energy_unavailable`.
        """
        use = self.by_key.get(key)
        name = self._workflow(key, workflow_id, workflow_budget_joules, now)
        if use is None and name is None:
            return None
        whole = None if name is None else self.by_workflow[name]
        if expected_joules is None and self.unavailable == "refuse":
            return Refusal(
                "energy_unavailable",
                "this call has a budget of joules, and there is neither a meter nor a model for its engine"
                " (energy.budgets_without_energy)",
                None,
            )
        wanted = expected_joules or 0.0
        if use is not None:
            use.pass_time(now)
            if wanted > use.left_joules or use.left_joules <= 0:
                assert use.ends_at is not None
                return Refusal(
                    "key_joule_budget",
                    f"this API key's budget of {use.budget_joules:g} J has {max(0.0, use.left_joules):.1f} J left"
                    f" and this call may need {wanted:.1f} J",
                    use.ends_at - now,
                )
        if whole is not None and (wanted > whole.left_joules or whole.left_joules <= 0):
            return Refusal(
                "workflow_joule_budget",
                f"this workflow's budget of {whole.budget_joules:g} J has {max(0.0, whole.left_joules):.1f} J left"
                f" and this call may need {wanted:.1f} J",
                None,
            )
        self._calls[call_id] = _Open(key, name, expected_joules)
        self._reserve(key, name, wanted)
        if len(self._calls) > self.calls_max:
            oldest, call = next(iter(self._calls.items()))
            self.settled(oldest, call.joules, now)
        return None

    def declare(self, key: str, workflow_id: str, budget_joules: float | None, now: float) -> None:
        """A workflow was announced: from now on its calls are held to this, whatever was used under its id before.
        None: it has no budget, unless a call says one."""
        self.by_workflow.pop((key, workflow_id), None)
        if budget_joules is not None:
            self._workflow(key, workflow_id, budget_joules, now)

    def ended(self, call_id: str, estimated_joules: float | None) -> None:
        """A call is over: until its bill is settled, it is reckoned with what it is thought to have used.

        A call that no engine was given: 0. None: nobody knows, the reservation stays until it is settled.
        """
        call = self._calls.get(call_id)
        if call is None or estimated_joules is None:
            return
        self._reserve(call.key, call.workflow, estimated_joules - (call.joules or 0.0))
        self._calls[call_id] = call._replace(joules=estimated_joules)

    def settled(self, call_id: str, joules: float | None, now: float) -> None:
        """A call's bill is settled, or nothing was given to any engine (0). None: nobody knows what it used."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        for use in self._uses(call.key, call.workflow):
            use.pass_time(now)
            use.reserved_joules = max(0.0, use.reserved_joules - (call.joules or 0.0))
            if joules is None:
                use.unknown_calls += 1
            else:
                use.use(joules)

    def moved(self, key: str, workflow_id: str, joules: float) -> None:
        """Prefix sharing moved joules between settled calls (`Closed.moved`)."""
        for use in self._uses(key, (key, workflow_id)):
            use.use(joules)

    def change(self, quotas: Iterable[JouleQuota], now: float) -> None:
        """Other quotas after a reload; what was used and what is reserved stays so."""
        old = self.by_key
        self.by_key = {quota.name: JouleUse(quota.budget_joules, quota.budget_seconds, now) for quota in quotas}
        for name, use in self.by_key.items():
            if (before := old.get(name)) is None:
                use.reserved_joules = sum(call.joules or 0.0 for call in self._calls.values() if call.key == name)
                continue
            before.pass_time(now)
            use.used_joules, use.reserved_joules = before.used_joules, before.reserved_joules
            use.unknown_calls = before.unknown_calls
            assert before.ends_at is not None and use.ends_at is not None
            use.ends_at = min(before.ends_at, use.ends_at)

    def budgets(self, now: float) -> tuple[tuple[str, float, float], ...]:
        """What a restart must not forget: (key, used joules, seconds until the period ends). Calls that are not settled
        count as used: nobody will settle them."""
        return tuple(
            (name, use.used_joules + use.reserved_joules, max(0.0, (use.ends_at or now) - now))
            for name, use in self.by_key.items()
        )

    def restore(self, budgets: Iterable[tuple[str, float, float]], now: float) -> None:
        """Take over `budgets()` of an earlier process; a period that ended meanwhile has seconds below zero."""
        for name, used_joules, ends_in_seconds in budgets:
            if (use := self.by_key.get(name)) is not None:
                use.used_joules = used_joules
                use.ends_at = now + ends_in_seconds
                use.pass_time(now)

    # --- inside ---

    def _workflow(self, key: str, workflow_id: str, budget_joules: float | None, now: float) -> tuple[str, str] | None:
        if not workflow_id:
            return None
        name = key, workflow_id
        use = self.by_workflow.get(name)
        if use is None:
            if budget_joules is None:
                return None
            self.by_workflow[name] = JouleUse(budget_joules, None, now)
            while len(self.by_workflow) > self.workflows_max:
                self.by_workflow.popitem(last=False)
                self.forgotten_workflows += 1
            return name
        self.by_workflow.move_to_end(name)
        if budget_joules is not None:
            use.budget_joules = budget_joules
        return name

    def _uses(self, key: str, workflow: tuple[str, str] | None) -> list[JouleUse]:
        found = (self.by_key.get(key), None if workflow is None else self.by_workflow.get(workflow))
        return [use for use in found if use is not None]

    def _reserve(self, key: str, workflow: tuple[str, str] | None, joules: float) -> None:
        for use in self._uses(key, workflow):
            use.reserved_joules = max(0.0, use.reserved_joules + joules)

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        assert len(self.by_workflow) <= self.workflows_max
        reserved = dict.fromkeys(self.by_key, 0.0)
        for call in self._calls.values():
            if call.key in reserved:
                reserved[call.key] += call.joules or 0.0
        for name, use in self.by_key.items():
            assert use.used_joules >= 0 and use.reserved_joules >= 0
            assert abs(use.reserved_joules - reserved[name]) < 1e-6 + 1e-9 * use.used_joules, (name, reserved[name])
