"""The event log: what the scheduler was told and what it answered, a JSON line each, for replaying any run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from scheduler.breaker import BreakerRule
from scheduler.core import Scheduler, SchedulerConfig
from scheduler.events import EngineSpec, Event, KeyQuota

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scheduler.actions import Action

VERSION = 1
_EVENTS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Event)}
_NESTED: dict[str, Any] = {"engines": EngineSpec, "quotas": KeyQuota}


class LogFault(ValueError):
    """A line that is no event log's; the message names the line."""


def head_line(config: SchedulerConfig, now: float) -> str:
    """The first line: what the scheduler started from."""
    return json.dumps({"joulegate_event_log": VERSION, "now": now, "config": asdict(config)})


def event_line(event: Event, now: float, actions: Sequence[Action]) -> str:
    """One event and what it led to."""
    said = [{"action": type(action).__name__, **action._asdict()} for action in actions]
    return json.dumps({"now": now, "event": type(event).__name__, **event._asdict(), "actions": said})


def _event(record: dict[str, Any]) -> Event:
    kind = _EVENTS[record["event"]]
    values = {name: _value(name, record[name]) for name in kind._fields if name in record}
    event: Event = kind(**values)
    return event


def _value(name: str, value: Any) -> Any:
    """JSON knows lists only: tuples and named tuples come back as they were."""
    if not isinstance(value, list):
        return value
    if (nested := _NESTED.get(name)) is not None:
        return tuple(nested(*item) for item in value)
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _config(record: dict[str, Any]) -> SchedulerConfig:
    values = {name: _value(name, value) for name, value in record.items()}
    return SchedulerConfig(**{**values, "breaker": BreakerRule(**record["breaker"])})


def replay(lines: Iterable[str]) -> Iterator[tuple[int, Event, list[Action], bool]]:
    """Run a log through a fresh scheduler: (line number, event, its actions now, whether they are those of the log).

    Raises LogFault for a line that cannot be read.
    """
    scheduler: Scheduler | None = None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if scheduler is None:
                if record.get("joulegate_event_log") != VERSION:
                    raise LogFault(f"line {number}: not the head of an event log of version {VERSION}")
                scheduler = Scheduler(_config(record["config"]), record["now"])
                continue
            if record.get("joulegate_event_log_full"):
                return
            event, now, said = _event(record), record["now"], record["actions"]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise LogFault(f"line {number}: not a line of an event log: {error!r}") from None
        actions = scheduler.handle(event, now)
        now_said = json.loads(event_line(event, now, actions))["actions"]
        yield number, event, actions, now_said == said
