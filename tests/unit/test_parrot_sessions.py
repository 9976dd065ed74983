"""Sessions of Parrot's API in virtual time: what may run when, what is held, who may use what, and when it expires."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import RequestFault
from proxy.parrot.config import ParrotConfig
from proxy.parrot.forms import semantic_call
from proxy.parrot.graph import Generation, Variable
from proxy.parrot.sessions import VARIABLE_BYTES, Session, Sessions, session_id_of

BROKEN = RequestFault(502, "engine_lost", "the engine is gone")


def submit(
    session: Session, template: str, outputs: str = "y", **inputs: str | Variable
) -> tuple[dict[str, Variable], list[Generation]]:
    """A call; inputs are values or variables."""
    parameters: list[dict[str, Any]] = [
        {"name": name, "is_output": False} | ({"value": value} if isinstance(value, str) else {"var_id": value.id})
        for name, value in inputs.items()
    ]
    parameters += [{"name": name, "is_output": True} for name in outputs.split()]
    _, variables, generations = session.submit(semantic_call({"template": template, "parameters": parameters}))
    return variables, generations


def ask(session: Session, variable: Variable) -> tuple[list[Generation], list[Generation]]:
    """What is newly asked for, and what of it may run."""
    asked = session.graph.ask(variable, "latency")
    return asked, session.graph.ready_of(asked)


def session(**limits: Any) -> Session:
    return Sessions(ParrotConfig(**limits)).begin("-", 0.0)


def refused(fault: pytest.ExceptionInfo[RequestFault]) -> tuple[int, str]:
    return fault.value.status, fault.value.reason


# --- what may run ---


def test_nothing_runs_before_it_is_asked_for_and_asking_walks_backwards() -> None:
    one = session()
    first, [draft] = submit(one, "write {{x}} {{y}}", x="a")
    second, [review] = submit(one, "judge {{x}} {{y}}", x=first["y"])
    third, [other] = submit(one, "else {{x}} {{y}}", x=first["y"])
    asked, ready = ask(one, second["y"])
    assert asked == [draft, review] and ready == [draft]
    assert (review.objective, draft.objective) == ("latency", None)
    assert ask(one, second["y"]) == ask(one, first["y"]) == ([], [])
    assert one.keep(first["y"], "d") == [review]
    assert review.text() == "judge d " and review.text_length() == len("judge d ")
    assert ask(one, third["y"]) == ([other], [other])


def test_an_output_sees_what_stands_before_it() -> None:
    one = session()
    blank = one.new_variable("late")
    variables, [first, second] = submit(one, "a {{x}} {{p}} b {{x}}{{late}}{{q}} c", "p q", x="X", late=blank)
    asked, ready = ask(one, variables["q"])
    assert asked == [first, second] and ready == [first]
    assert first.text() == "a X "
    assert one.keep(variables["p"], "P") == []
    assert one.write(blank, "L") == [second]
    assert second.text() == "a X P b XL"


def test_equal_leading_fills_are_equal_text() -> None:
    one, other = session(), session()
    texts = []
    for place, topic in ((one, "cats"), (other, "dogs")):
        shared = place.new_variable("rules")
        place.write(shared, "Be brief.\n\u2028é")
        _, [generation] = submit(place, "System: {{rules}} Topic: {{topic}} {{y}}", rules=shared, topic=topic)
        texts.append(generation.text())
    assert [text.split("cats")[0].split("dogs")[0] for text in texts] == ["System: Be brief.\n\u2028é Topic: "] * 2


def test_what_fails_takes_everything_behind_it_along() -> None:
    one = session()
    first, _ = submit(one, "a {{y}}")
    second, _ = submit(one, "b {{x}} {{y}} then {{z}}", "y z", x=first["y"])
    told: list[str] = []
    second["z"].watchers.append(lambda: told.append("z"))
    ask(one, second["z"])
    one.graph.fail(first["y"], BROKEN)
    assert second["y"].fault is second["z"].fault is BROKEN and told == ["z"]
    later, _ = submit(one, "c {{x}} {{y}}", x=second["z"])
    assert later["y"].fault is BROKEN
    assert ask(one, later["y"]) == ([], [])


def test_a_chain_may_be_as_long_as_the_limits_allow() -> None:
    one = session()
    last = one.new_variable("start")
    first = last
    for _ in range(16_384):
        last = submit(one, "x{{x}}{{y}}", x=last)[0]["y"]
    asked, ready = ask(one, last)
    assert len(asked) == 16_384 and ready == [] and asked[-1].output is last
    assert one.write(first, "s") == [asked[0]]
    one.graph.fail(asked[0].output, BROKEN)
    assert last.fault is BROKEN


def test_node_names_are_the_same_in_every_run_and_each_only_once() -> None:
    one = session()
    assert [submit(one, "a {{y}}")[1][0].name for _ in range(3)] == ["call.y", "call.y#2", "call.y#3"]
    assert one.name == "call"


# --- writing ---


def test_a_variable_is_written_once() -> None:
    one = session()
    variable = one.new_variable("v")
    one.write(variable, "")
    for written, reason in ((variable, "already_written"), (submit(one, "a {{y}}")[0]["y"], "has_producer")):
        with pytest.raises(RequestFault) as fault:
            one.write(written, "again")
        assert refused(fault) == (409, reason)
    assert variable.content == ""


# --- limits ---


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("session_variables", 2, "session_variables"),
        ("session_calls", 1, "session_calls"),
        ("session_bytes", 3_000, "session_bytes"),
        ("held_bytes", 3_000, "parrot_full"),
    ],
)
def test_over_a_limit_nothing_of_a_call_is_created(limit: str, value: int, reason: str) -> None:
    one = session(**{limit: value})
    table = one._table
    submit(one, "a {{y}}")
    before = (one.held_bytes, len(one.graph.variables), table.variables, table.held_bytes, one.calls)
    with pytest.raises(RequestFault) as fault:
        submit(one, "a {{x}} {{p}} {{q}}", "p q", x="0123456789")
    assert refused(fault) == (503 if reason == "parrot_full" else 413, reason)
    assert f"parrot.{limit}" in fault.value.message
    assert before == (one.held_bytes, len(one.graph.variables), table.variables, table.held_bytes, one.calls)


def test_an_unknown_input_creates_nothing_and_is_named() -> None:
    one, foreign = session(), session()
    with pytest.raises(RequestFault) as fault:
        submit(one, "{{a}} {{x}} {{y}}", a="kept?", x=foreign.new_variable("v"))
    assert refused(fault) == (404, "unknown_variable") and fault.value.message.startswith("parameters[1].var_id: ")
    assert one.held_bytes == len(one.graph.variables) == 0


def test_outputs_count_as_what_is_held() -> None:
    other = session()
    submit(other, "a {{y}}")
    one = session(session_bytes=other.held_bytes + 23)
    output = submit(one, "a {{y}}")[0]["y"]
    with pytest.raises(RequestFault) as fault:
        one.keep(output, "ü" * 12)
    assert refused(fault) == (413, "session_bytes") and not output.settled
    one.keep(output, "ü" * 11)
    assert one.held_bytes == other.held_bytes + 22


@pytest.mark.parametrize(
    "body",
    [
        {"models": ["m" * 100_000]},
        {"output": {"stop_str": "s" * 100_000}},
        {"output": {"stop_str": ["s" * 10_000] * 10}},
        {"output": {"logit_bias": {str(number): 1 for number in range(1_000)}}},
        {"template": "{{y}}".join(["a", "{{x}}b" * 2_000]) + "{{z}}"},
        {"inputs": 200},
    ],
    ids=["models", "a stop text", "stop texts", "biases", "pieces", "inputs that stand nowhere"],
)
def test_all_that_is_kept_of_a_call_is_counted(body: dict[str, Any]) -> None:
    one = session()
    parameters: list[dict[str, Any]] = [{"name": "x", "is_output": False, "value": ""}]
    parameters += [{"name": f"i{number}", "is_output": False, "value": ""} for number in range(body.get("inputs", 0))]
    parameters += [{"name": name, "is_output": True, "sampling_config": body.get("output")} for name in "yz"]
    call = {
        "template": "a{{y}}{{z}}",
        "parameters": parameters,
        **{k: body[k] for k in body if k in ("models", "template")},
    }
    one.submit(semantic_call(call))
    assert one.held_bytes >= 100_000
    assert one.held_bytes < 400_000, "and not many times over"


def test_empty_variables_are_not_nothing() -> None:
    one = session()
    for _ in range(1_000):
        one.new_variable("")
    assert one.held_bytes == 1_000 * VARIABLE_BYTES


def test_sessions_have_a_limit_in_all_and_per_key() -> None:
    table = Sessions(ParrotConfig(sessions=4, sessions_per_key=2))
    mine = table.begin("a", 0.0)
    table.begin("a", 0.0)
    with pytest.raises(RequestFault) as fault:
        table.begin("a", 0.0)
    assert refused(fault) == (429, "key_sessions")
    table.begin("b", 0.0)
    table.begin("b", 0.0)
    with pytest.raises(RequestFault) as fault:
        table.begin("c", 0.0)
    assert refused(fault) == (503, "sessions_full")
    table.end(mine, BROKEN)
    table.begin("a", 0.0)
    everyone = Sessions(ParrotConfig(sessions_per_key=1))
    assert len({everyone.begin("-", 0.0).id for _ in range(3)}) == 3, "without keys there is no limit per key"


# --- ids and time ---


def test_ids_are_positive_fit_64_bits_and_are_not_told_to_logs() -> None:
    for one in (session() for _ in range(100)):
        assert 0 < one.id < 2**63
        assert str(one.id) not in one.workflow_id and one.auth not in one.workflow_id


@pytest.mark.parametrize("value", ["7", 7.0, True, None, [7]])
def test_a_session_id_is_an_integer(value: object) -> None:
    with pytest.raises(RequestFault) as fault:
        session_id_of({"session_id": value})
    assert fault.value.message == "session_id: must be an integer"
    with pytest.raises(RequestFault, match="session_id: is missing"):
        session_id_of({})


def test_a_session_lives_its_time_after_its_last_use() -> None:
    table = Sessions(ParrotConfig())
    one, other = table.begin("a", 0.0), table.begin("a", 1.0)
    assert table.find(one.id, "a", 599.0) is one
    waits = one.new_variable("v")
    table.tick(600.9)
    assert list(table.open.values()) == [other, one]
    table.tick(601.0)
    assert list(table.open.values()) == [one]
    assert table.find(one.id, None, 1198.9) is one
    for name in ("a", None):
        with pytest.raises(RequestFault) as fault:
            table.find(one.id, name, 1798.9)
        assert refused(fault) == (410, "session_expired")
    assert waits.fault is not None and waits.fault.status == 410
    assert (len(table.open), table.variables, table.held_bytes) == (0, 0, 0)


def test_what_runs_keeps_a_session() -> None:
    busy = [True]
    ended: list[Session] = []
    table = Sessions(ParrotConfig(), lambda _: busy[0], ended.append)
    one = table.begin("a", 0.0)
    table.tick(10_000.0)
    assert one.last_used == 10_000.0
    busy[0] = False
    table.tick(10_600.0)
    assert ended == [one]


def test_foreign_deleted_and_unknown_sessions_are_the_same() -> None:
    table = Sessions(ParrotConfig(expired_sessions=1))
    mine, deleted, first, second = (table.begin("a", at) for at in (9.0, 9.0, 0.0, 1.0))
    table.open.move_to_end(mine.id)
    table.open.move_to_end(deleted.id)
    table.end(deleted, BROKEN)
    table.tick(605.0)
    words = set()
    for session_id, name in ((mine.id, "b"), (deleted.id, "a"), (1, "a"), (second.id, "b"), (first.id, "a")):
        with pytest.raises(RequestFault) as fault:
            table.find(session_id, name, 605.0)
        assert fault.value.status == 404
        words.add(fault.value.message)
    assert len(words) == 1
    with pytest.raises(RequestFault) as fault:
        table.find(second.id, "a", 605.0)
    assert fault.value.status == 410
