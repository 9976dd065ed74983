"""Which policies are there, which one decides, and how is it changed while calls run?"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from proxy.http.relay import safe_value
from scheduler.decisions import described, record_of
from scheduler.events import PolicyChanged
from scheduler.policies import POLICIES, option_problems, register, unknown_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from proxy.call import Call
    from proxy.gateway import Gateway
    from proxy.workflows.config import WorkflowsConfig
    from scheduler.actions import PolicyFailed
    from scheduler.core import Scheduler
    from scheduler.decisions import Record

GROUP = "joulegate.policies"
"""The entry points by which other packages bring policies."""
_log = logging.getLogger("joulegate")
_loaded: dict[str, str] = {}
"""Entry points that were looked at → what was wrong, "" for nothing."""


def load_plugins() -> dict[str, str]:
    """Make the policies of installed packages known, once a process. Returns what could not be loaded, and why: a bad
    package must not keep a gateway that does not use it from starting, so it is said on standard error, and the policy
    is unknown."""
    for point in entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        try:
            register(point.load())
            _loaded[point.value] = ""
        except Exception as error:  # noqa: BLE001  (said; it is other people's code)
            _loaded[point.value] = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"joulegate: the policy {point.name} ({point.value}) cannot be used: {error}\n")
    return {value: why for value, why in _loaded.items() if why}


def rule_words(scheduler: Scheduler, call_id: str) -> bytes:
    """By which rule a call was sent, and its name in `joulegate explain`: for `x-joulegate-decision`."""
    call = scheduler.calls.get(call_id)
    if call is None or call.sent is None:
        return b""
    return b"; rule=%b; id=%b" % (safe_value(call.sent.rule), call_id.encode("ascii"))


def decided_by(scheduler: Scheduler, call: Call) -> str:
    """The policy that has sent a call, or holds it: of an experiment, the arm's."""
    state = scheduler.calls.get(call.id)
    if state is None:
        return call.policy
    return scheduler.policy.said_by(state) if state.sent is None else state.sent.policy


def report_failed(gateway: Gateway, failed: PolicyFailed) -> None:
    """A policy was relieved: said in the log and on standard error; metrics and /ready read it off the scheduler."""
    gateway.log.event(
        "policy_failed",
        policy=failed.policy,
        where=failed.hook,
        detail=failed.error,
        decides=gateway.scheduler.policy.name,
    )
    _log.error("the policy %s failed in %s", failed.policy, failed.hook, exc_info=gateway.scheduler.deciding.error)


class PolicyFault(ValueError):
    """A policy, or an option of one, that cannot be had. `param` names the member that is wrong."""

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(message)
        self.param = param


class PolicyDesk:
    """The policy in force and its decisions, for operators: asked about and changed through the control plane."""

    def __init__(self, gateway: Gateway, workflows: WorkflowsConfig) -> None:
        self._gateway = gateway
        self._workflows = workflows

    # --- which one ---

    def use(self, name: str, options: Mapping[str, object]) -> None:
        """This one decides from now on; its name and options are checked. No call is lost, held ones are its own."""
        gateway = self._gateway
        gateway.tell(PolicyChanged(name, tuple(sorted(options.items()))))
        gateway.configure_watch(self._workflows)

    def reload(self, name: str, options: Mapping[str, object]) -> None:
        """What the configuration says, if anything else decides: another one that was set meanwhile, or the one that
        stands in for it because it failed."""
        deciding = self._gateway.scheduler.deciding
        if self._gateway.scheduler.experiments.running:  # the policy of its control, when it is over
            self._gateway.log.event("policy_kept", detail="an experiment is running; reload again when it is over")
            return
        if deciding.failed is not None or deciding.asked != (name, dict(options)):
            self.use(name, options)

    def change(self, wanted: object) -> dict[str, Any]:
        """`{"name": …, "options": {…}}`. Raises PolicyFault, and nothing has changed."""
        if not isinstance(wanted, dict):
            raise PolicyFault(
                None, 'the body must be an object like {"name": "fifo", "options": {"max_in_flight": 64}}'
            )
        if unknown := sorted(wanted.keys() - {"name", "options"}):
            raise PolicyFault(str(unknown[0])[:64], f"unknown member {str(unknown[0])[:64]!r}; known are name, options")
        name, options = wanted.get("name"), wanted.get("options", {})
        if not isinstance(name, str):
            raise PolicyFault("name", f"must be text: the name of a policy; there are {', '.join(POLICIES)}")
        if name not in POLICIES:
            raise PolicyFault("name", unknown_policy(name))
        if not isinstance(options, dict):
            raise PolicyFault("options", "must be an object: option → value")
        if found := option_problems(name, options):
            raise PolicyFault(
                f"options.{found[0][0][:64]}", "; ".join(f"{option[:64]}: {what}" for option, what in found)
            )
        for this in self._gateway.scheduler.experiments.running:
            raise PolicyFault("name", f"the experiment {this!r} decides; `joulegate ab stop {this}` ends it")
        before = self._gateway.scheduler.policy.name
        self.use(name, options)
        self._gateway.log.event("policy_changed", policy=name, options=options, before=before)
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """The policy in force, why it is another than the one asked for, and what there is."""
        deciding = self._gateway.scheduler.deciding
        asked, given = deciding.asked
        failed = deciding.failed
        return {
            "policy": deciding.policy.name,
            "asked_for": asked,
            "options": {**{name: option.default for name, option in POLICIES[asked].options.items()}, **given},
            "failed": None if failed is None else failed._asdict(),
            "known": {
                name: {
                    option: {"default": what.default, "takes": what.range_words(), "meaning": what.meaning}
                    for option, what in policy.options.items()
                }
                for name, policy in POLICIES.items()
            },
        }

    def notes(self) -> list[str]:
        """What /ready says although calls may come."""
        failed = self._gateway.scheduler.deciding.failed
        if failed is None:
            return []
        what = f"policy {failed.policy} failed in {failed.hook} ({failed.error}): passthrough decides"
        return [f"{what}; POST /admin/policy or SIGHUP sets one again"]

    # --- its decisions ---

    def decisions(self, limit: int, workflow: str | None) -> list[dict[str, Any]]:
        """The newest first: calls that are live, then those that are over."""
        scheduler = self._gateway.scheduler
        found: list[Record] = []
        for call in reversed(scheduler.calls.values()):
            if len(found) == limit:
                break
            if workflow is None or call.arrived.workflow_id == workflow:
                found.append(record_of(call))
        for record in scheduler.decisions.newest_first():
            if len(found) == limit:
                break
            if workflow is None or record.workflow_id == workflow:
                found.append(record)
        return [self._described(record) for record in found]

    def decision(self, call_id: str) -> dict[str, Any] | None:
        """Of one call; None: it is not known (any more)."""
        scheduler = self._gateway.scheduler
        call = scheduler.calls.get(call_id)
        record = scheduler.decisions.find(call_id) if call is None else record_of(call)
        return None if record is None else self._described(record)

    def _described(self, record: Record) -> dict[str, Any]:
        bill = self._gateway.scheduler.energy.bill.call(record.call_id)
        told = described(record, monotonic(), None if bill is None else bill.marginal_joules)
        if (came := told["came_of_it"]) is not None:
            came["joules_source"] = "unavailable" if bill is None or came["joules"] is None else bill.source
        return told


class PolicyMetrics(Collector):
    """What is counted of decisions. Read off the scheduler at a scrape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at a scrape."""
        scheduler = self._gateway.scheduler
        deciding, log = scheduler.deciding, scheduler.decisions
        asked = deciding.asked[0]
        yield InfoMetricFamily("joulegate_policy", "Who decides", {"policy": deciding.policy.name, "asked_for": asked})
        yield CounterMetricFamily("joulegate_policy_failures", "Times that a policy raised", deciding.failures)
        labels = ("policy", "rule")
        decisions = CounterMetricFamily("joulegate_decisions", "Calls sent, by the rule that sent them", labels=labels)
        for name, count in log.counts.items():
            decisions.add_metric(name, count)
        yield decisions
        for unit in ("joules", "seconds"):
            text = f"Actual {unit} beyond (more) or under (less) those predicted of what was not done instead"
            regret = CounterMetricFamily(f"joulegate_decision_regret_{unit}", text, labels=(*labels, "sign"))
            for name, judged in log.judged.items():
                for sign in ("more", "less"):
                    regret.add_metric((*name, sign), getattr(judged, f"{unit}_{sign}"))
            yield regret
        judgements = CounterMetricFamily("joulegate_decisions_judged", "Decisions with a regret", labels=labels)
        for name, judged in log.judged.items():
            judgements.add_metric(name, judged.count)
        yield judgements
