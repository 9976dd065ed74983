"""Logs as they are found: cut off in the middle, of another version, or no log at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.cli import main
from scheduler.eventlog import LogCut, LogFault, replay
from scheduler.events import BreakersChanged, PolicyChanged
from tests.sim.test_scheduler import World


def recorded(steps: int = 40) -> list[str]:
    world = World(5, "fifo")
    for _ in range(steps):
        world.step()
    world.tell(BreakersChanged(2, 9.0))
    return world.log


def with_policy(line: str, name: str) -> str:
    record: dict[str, Any] = json.loads(line)
    place, member = (record["config"], "policy") if "config" in record else (record, "name")
    place[member] = name
    return json.dumps(record)


def test_a_last_line_that_is_cut_is_said_and_the_rest_compared(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log = recorded()
    path = tmp_path / "events.jsonl"
    text = "\n".join(log)[:-9]
    path.write_text(text)
    with pytest.raises(LogCut, match=f"line {len(log)}: cut off"):
        list(replay(text.splitlines(keepends=True)))
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr()
    assert f"{len(log) - 2} events replayed, 0 with other actions" in said.out
    assert f"line {len(log)}: cut off" in said.err


def test_a_line_cut_before_the_end_is_a_fault() -> None:
    log = recorded()
    log[10] = log[10][:-9]
    with pytest.raises(LogFault, match="line 11: not a line of an event log") as fault:
        list(replay(log))
    assert not isinstance(fault.value, LogCut)


def test_a_head_that_is_cut_leaves_nothing_to_compare() -> None:
    with pytest.raises(LogFault) as fault:
        list(replay([recorded()[0][:-3]]))
    assert not isinstance(fault.value, LogCut)


def test_a_policy_that_this_version_has_not_is_named(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = recorded()
    log[0] = with_policy(log[0], "oracle")
    with pytest.raises(LogFault, match="line 1: policy 'oracle' is not in this version, which has passthrough, fifo"):
        list(replay(log))
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(log) + "\n")
    assert main(["replay", str(path)]) == 2
    assert "oracle" in capsys.readouterr().err
    world = World(5, "fifo")
    world.tell(PolicyChanged("passthrough"))
    with pytest.raises(LogFault, match="line 2: policy 'oracle'"):
        list(replay([world.log[0], with_policy(world.log[1], "oracle")]))


def test_options_that_a_policy_does_not_take_are_named() -> None:
    world = World(5, "fifo")
    world.tell(PolicyChanged("fifo", (("max_in_flight", 2),)))
    changed = world.log[1].replace("max_in_flight", "max_joules")
    with pytest.raises(LogFault, match="line 2: cannot be replayed: max_joules: unknown option"):
        list(replay([world.log[0], changed]))


def test_a_call_that_arrives_twice_is_a_fault_of_the_log() -> None:
    world = World(5, "passthrough")
    world.arrive()
    assert len(world.log) == 2
    with pytest.raises(LogFault, match="line 3: cannot be replayed: call 'c0' arrived twice"):
        list(replay([*world.log, world.log[1]]))
