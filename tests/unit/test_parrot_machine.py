"""Creating, asking, writing, finishing, failing, deleting and expiring in any order, against a naive model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.errors import RequestFault
from proxy.parrot.config import ParrotConfig
from proxy.parrot.forms import semantic_call
from proxy.parrot.graph import Generation
from proxy.parrot.sessions import GENERATION_BYTES, VARIABLE_BYTES, Session, Sessions

SECONDS = 10.0
BROKEN = RequestFault(502, "engine_lost", "gone")
PIECES = st.sampled_from(["a", " b ", "ü"])


@dataclass
class Written:
    """A variable: its name, its content, and what a model needs to write it (None: a client writes it)."""

    name: str
    content: str | None = None
    failed: bool = False
    before: list[Any] | None = None
    asked: bool = False


@dataclass
class Naive:
    """A session: everything is looked up and computed anew each time."""

    session: Session
    used: float
    size: int = 0
    variables: dict[str, Written] = field(default_factory=dict)
    running: dict[str, Generation] = field(default_factory=dict)

    def needs(self, variable: Written) -> list[Written]:
        assert variable.before is not None
        return [self.variables[piece[0]] for piece in variable.before if isinstance(piece, tuple)]

    def ask(self, variable: Written) -> None:
        if variable.before is not None and variable.content is None and not variable.failed and not variable.asked:
            variable.asked = True
            for needed in self.needs(variable):
                self.ask(needed)

    def spread(self) -> None:
        for _ in self.variables:
            for variable in self.variables.values():
                if variable.before is not None and any(needed.failed for needed in self.needs(variable)):
                    variable.failed = variable.failed or variable.content is None

    def runnable(self) -> set[str]:
        return {
            var_id
            for var_id, variable in self.variables.items()
            if variable.asked
            and variable.content is None
            and not variable.failed
            and all(needed.content is not None for needed in self.needs(variable))
        }


class Machine(RuleBasedStateMachine):
    """What the sessions say is what the naive model says."""

    @initialize()
    def begin_at_all(self) -> None:
        self.now = 0.0
        self.open: list[Naive] = []
        self.gone: list[Session] = []
        self.table = Sessions(ParrotConfig(session_seconds=SECONDS), self.busy)

    def busy(self, session: Session) -> bool:
        return any(naive.running for naive in self.open if naive.session is session)

    def pick(self, data: st.DataObject) -> Naive:
        naive = data.draw(st.sampled_from(self.open))
        assert self.table.find(naive.session.id, None, self.now) is naive.session
        naive.used = self.now
        return naive

    def started(self, naive: Naive, ready: list[Generation]) -> None:
        for generation in ready:
            assert generation.output.id not in naive.running, "it is started once"
            naive.running[generation.output.id] = generation

    @precondition(lambda self: len(self.open) < 3)
    @rule()
    def begin(self) -> None:
        self.open.append(Naive(self.table.begin("-", self.now), self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), content=st.none() | PIECES)
    def new_variable(self, data: st.DataObject, content: str | None) -> None:
        naive = self.pick(data)
        variable = naive.session.new_variable("v")
        naive.variables[variable.id] = Written("v", content)
        naive.size += 1 + VARIABLE_BYTES
        if content is not None:
            assert naive.session.write(variable, content) == []
            naive.size += len(content.encode())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outputs=st.integers(1, 3))
    def submit(self, data: st.DataObject, outputs: int) -> None:
        naive = self.pick(data)
        known = list(naive.variables)
        parameters: list[dict[str, Any]] = []
        before: list[Any] = ["go "]
        made: list[tuple[str, list[Any]]] = []
        for number in range(outputs):
            for at in range(data.draw(st.integers(0, 2))):
                name = f"i{number}_{at}"
                entry: dict[str, Any] = {"name": name, "is_output": False}
                if data.draw(st.booleans()) and known:
                    entry["var_id"] = data.draw(st.sampled_from(known))
                else:
                    entry["value"] = data.draw(PIECES)
                parameters.append(entry)
                before += [(name,), "-"]
            made.append((f"o{number}", list(before)))
            parameters.append({"name": f"o{number}", "is_output": True})
            before += [(f"o{number}",), "."]
        template = "".join(piece if isinstance(piece, str) else "{{" + piece[0] + "}}" for piece in before)
        form = semantic_call({"template": template, "parameters": parameters})
        _, variables, _ = naive.session.submit(form)
        naive.size += form.held_bytes + GENERATION_BYTES * outputs
        for entry in parameters:
            variable = variables[entry["name"]]
            if "var_id" not in entry:
                naive.variables[variable.id] = Written(entry["name"], entry.get("value"))
                naive.size += VARIABLE_BYTES + len(entry["name"]) + len(entry.get("value", "").encode())
        for name, pieces in made:
            ids = [piece if isinstance(piece, str) else (variables[piece[0]].id,) for piece in pieces]
            naive.variables[variables[name].id].before = ids
        naive.spread()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        naive = self.pick(data)
        if naive.variables:
            var_id = data.draw(st.sampled_from(list(naive.variables)))
            variable = naive.session.variable(var_id, "var_id")
            asked = naive.session.graph.ask(variable, "latency")
            places = {generation.output.id: at for at, generation in enumerate(asked)}
            for generation in asked:
                for source in generation.sources:
                    assert places.get(source.id, -1) < places[generation.output.id], "producers come first"
            naive.ask(naive.variables[var_id])
            self.started(naive, naive.session.graph.ready_of(asked))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), content=PIECES)
    def write(self, data: st.DataObject, content: str) -> None:
        naive = self.pick(data)
        if naive.variables:
            var_id = data.draw(st.sampled_from(list(naive.variables)))
            mine, variable = naive.variables[var_id], naive.session.variable(var_id, "var_id")
            if mine.content is not None or mine.before is not None:
                with pytest.raises(RequestFault) as refused:
                    naive.session.write(variable, content)
                assert refused.value.status == 409
                return
            mine.content = content
            naive.size += len(content.encode())
            self.started(naive, naive.session.write(variable, content))

    @precondition(lambda self: any(naive.running for naive in self.open))
    @rule(data=st.data(), content=st.none() | PIECES)
    def finish(self, data: st.DataObject, content: str | None) -> None:
        naive = data.draw(st.sampled_from([naive for naive in self.open if naive.running]))
        var_id = data.draw(st.sampled_from(list(naive.running)))
        generation, mine = naive.running.pop(var_id), naive.variables[var_id]
        assert mine.before is not None
        text = "".join(p if isinstance(p, str) else naive.variables[p[0]].content or "?" for p in mine.before)
        assert generation.text() == text and generation.text_length() == len(text)
        if content is None:
            naive.session.graph.fail(generation.output, BROKEN)
            mine.failed = True
            naive.spread()
        else:
            mine.content = content
            naive.size += len(content.encode())
            self.started(naive, naive.session.keep(generation.output, content))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        naive = self.pick(data)
        self.open.remove(naive)
        self.table.end(naive.session, BROKEN)
        self.gone.append(naive.session)

    @rule(seconds=st.sampled_from([1.0, 4.0, SECONDS]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.table.tick(self.now)
        for naive in list(self.open):
            if self.now - naive.used >= SECONDS:
                if naive.running:
                    naive.used = self.now
                else:
                    self.open.remove(naive)
                    self.gone.append(naive.session)

    @invariant()
    def agree(self) -> None:
        assert set(self.table.open.values()) == {naive.session for naive in self.open}
        assert self.table.held_bytes == sum(naive.size for naive in self.open)
        assert self.table.variables == sum(len(naive.variables) for naive in self.open)
        for naive in self.open:
            assert naive.session.held_bytes == naive.size
            assert set(naive.running) == naive.runnable()
            for var_id, mine in naive.variables.items():
                variable = naive.session.graph.variables[var_id]
                assert (variable.content, variable.fault is not None) == (mine.content, mine.failed)
        for session in self.gone:
            assert all(variable.settled for variable in session.graph.variables.values())
            with pytest.raises(RequestFault) as refused:
                self.table.find(session.id, None, self.now)
            assert refused.value.status in (404, 410)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
