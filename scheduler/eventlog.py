"""The event log: what the scheduler was told and what it answered, a JSON line each, for replaying any run."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, get_args

from scheduler.breaker import BreakerRule
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.energy.budgets import JouleQuota
from scheduler.energy.caps.rules import CapRules
from scheduler.energy.caps.view import CardLimits
from scheduler.energy.desk import EnergyRules
from scheduler.energy.model.prior import CapPrior, Prices, Prior
from scheduler.energy.window import Counters, Energy, MeterSample
from scheduler.events import EngineSpec, Event, KeyQuota, PolicyChanged
from scheduler.parking import ParkingRules
from scheduler.policies import POLICIES
from scheduler.workflow.spec import NodeSpec, WorkflowLimits, WorkflowSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from scheduler.actions import Action

VERSION = 4
_EVENTS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Event)}
_NESTED: dict[str, Any] = {
    "engines": EngineSpec, "quotas": KeyQuota, "nodes": NodeSpec, "joule_quotas": JouleQuota,
}  # fmt: skip


class LogFault(ValueError):
    """A line that is no event log's, or that this version cannot replay; the message names the line."""


class LogCut(LogFault):
    """The last line is not whole, as when the process was killed or its disk was full: all before it was replayed."""


def head_line(config: SchedulerConfig, now: float) -> str:
    """The first line: what the scheduler started from."""
    return json.dumps({"joulegate_event_log": VERSION, "now": now, "config": asdict(config)})


def event_line(event: Event, now: float, actions: Sequence[Action]) -> str:
    """One event and what it led to."""
    said = [{"action": type(action).__name__, **action._asdict()} for action in actions]
    record = {"now": now, "event": type(event).__name__, **event._asdict(), "actions": said}
    return json.dumps(record, default=_plain)


def _plain(value: Any) -> Any:
    """Dataclasses among the fields. (Named tuples are lists to JSON.)"""
    assert isinstance(value, Prior)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _event(record: dict[str, Any]) -> Event:
    kind = _EVENTS[record["event"]]
    values = {name: _value(name, record[name]) for name in kind._fields if name in record}
    event: Event = kind(**values)
    return event


def _value(name: str, value: Any) -> Any:
    """JSON knows lists only: tuples and named tuples come back as they were."""
    if name == "prior":
        parts = {"time": Prices, "energy": Prices, "cap": CapPrior}
        return Prior(**{**value, **{part: kind(*value[part]) for part, kind in parts.items()}})
    if not isinstance(value, list):
        return value
    if name == "sample":
        return MeterSample(value[0], Energy(*value[1]), *value[2:])
    if name == "limits":
        return CardLimits(*value)
    if name == "counters":
        return Counters(*value)
    if name == "spec":
        return WorkflowSpec(*map(_value, WorkflowSpec._fields, value))
    if (nested := _NESTED.get(name)) is not None:
        return tuple(nested(*[tuple(part) if isinstance(part, list) else part for part in item]) for item in value)
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _config(record: dict[str, Any]) -> SchedulerConfig:
    values = {name: _value(name, value) for name, value in record.items()}
    tables = {"breaker": BreakerRule, "workflow_limits": WorkflowLimits, "energy": EnergyRules, "caps": CapRules,
              "parking": ParkingRules}  # fmt: skip
    return SchedulerConfig(**{**values, **{name: kind(**record[name]) for name, kind in tables.items()}})


def _known_policy(line: int, name: str) -> None:
    if name not in POLICIES:
        raise LogFault(f"line {line}: policy {name!r} is not in this version, which has {', '.join(POLICIES)}")


def replay(
    lines: Iterable[str], on_scheduler: Callable[[Scheduler], None] | None = None
) -> Iterator[tuple[int, Event, list[Action], bool]]:
    """Run a log through a fresh scheduler: (line number, event, its actions now, whether they are those of the log).

    `on_scheduler` is shown it before the first event. Raises LogFault for a line that cannot be read, LogCut at the end
    if it is the last one.
    """
    scheduler: Scheduler | None = None
    rest = iter(lines)
    for number, line in enumerate(rest, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if scheduler is not None and next(rest, None) is None:
                raise LogCut(f"line {number}: cut off in the middle; all lines before it were replayed") from None
            raise LogFault(f"line {number}: not a line of an event log: {error!r}") from None
        try:
            if scheduler is None:
                if record.get("joulegate_event_log") != VERSION:
                    raise LogFault(f"line {number}: not the head of an event log of version {VERSION}")
                _known_policy(number, record["config"]["policy"])
                scheduler = Scheduler(_config(record["config"]), record["now"])
                if on_scheduler is not None:
                    on_scheduler(scheduler)
                continue
            if record.get("joulegate_event_log_full"):
                return
            event, now, said = _event(record), record["now"], record["actions"]
        except LogFault:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LogFault(f"line {number}: not a line of an event log: {error!r}") from None
        if isinstance(event, PolicyChanged):
            _known_policy(number, event.name)
        try:
            actions = scheduler.handle(event, now)
        except ValueError as error:  # options that the policy does not take (any more), a call that arrives twice
            raise LogFault(f"line {number}: cannot be replayed: {error}") from None
        now_said = json.loads(event_line(event, now, actions))["actions"]
        yield number, event, actions, now_said == said
