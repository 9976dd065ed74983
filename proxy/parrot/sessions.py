"""Which sessions are open, what do they hold, when do they expire? No I/O; times are a monotonic clock's seconds."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING

from proxy.errors import RequestFault
from proxy.parrot.faults import unknown_session, unknown_variable, wrong
from proxy.parrot.forms import Input, SemanticCall
from proxy.parrot.graph import Generation, Graph, Variable

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.parrot.config import ParrotConfig

NO_KEY = "-"
VARIABLE_BYTES = 512
GENERATION_BYTES = 1_024
"""What one takes in memory beside its text: many empty ones are not nothing."""


class Session:
    """One client's variables and calls: for the scheduler one workflow."""

    def __init__(self, table: Sessions, key_name: str, now: float) -> None:
        self.id = 1 + secrets.randbelow(2**63 - 1)
        """All that the front end shows with most requests: nobody may guess it. It fits a signed 64-bit integer."""
        self.auth = secrets.token_hex(16)
        self.workflow_id = f"parrot-{secrets.token_hex(8)}"
        """Drawn apart: workflows' ids stand in logs, where a session's must not."""
        self.key_name = key_name
        self.name: str | None = None
        """The function first called: what programs of one kind have in common."""
        self.graph = Graph()
        self.held_bytes = 0
        self.calls = 0
        self.last_used = now
        self._table = table
        self._names: dict[str, int] = {}

    def variable(self, var_id: str, path: str) -> Variable:
        """One of its variables. 404 for any other."""
        if (variable := self.graph.variables.get(var_id)) is None:
            raise unknown_variable(path)
        return variable

    def new_variable(self, name: str) -> Variable:
        """A variable that a client will write."""
        size = VARIABLE_BYTES + _size(name)
        self._check_room(variables=1, calls=0, size=size)
        self._hold(size)
        return self._variable(name)

    def write(self, variable: Variable, content: str) -> list[Generation]:
        """A client writes a variable: what may run now."""
        if variable.content is not None:
            raise RequestFault(409, "already_written", f"content: the variable {variable.name!r} is written already")
        if variable.producer is not None:
            raise RequestFault(409, "has_producer", f"content: the variable {variable.name!r} is written by a call")
        return self.keep(variable, content)

    def keep(self, variable: Variable, content: str) -> list[Generation]:
        """A content arrives, whoever wrote it: what may run now. RequestFault if there is no room for it."""
        size = _size(content)
        self._check_room(variables=0, calls=0, size=size)
        self._hold(size)
        return self.graph.write(variable, content)

    def submit(self, form: SemanticCall) -> tuple[int, dict[str, Variable], list[Generation]]:
        """Take a call over: its number, its parameters' variables, its generations. All of it or nothing."""
        outputs = [name for name, parameter in form.parameters.items() if not isinstance(parameter, Input)]
        bound: dict[str, Variable] = {}
        size = form.held_bytes + GENERATION_BYTES * len(outputs)
        for at, (name, parameter) in enumerate(form.parameters.items()):
            if isinstance(parameter, Input) and parameter.var_id is not None:
                bound[name] = self.variable(parameter.var_id, f"parameters[{at}].var_id")
            else:
                value = parameter.value if isinstance(parameter, Input) else None
                size += VARIABLE_BYTES + _size(name) + _size(value or "")
        self._check_room(variables=len(form.parameters) - len(bound), calls=len(outputs), size=size)
        self._hold(size)
        self.calls += 1
        if self.name is None:
            self.name = form.name
        variables: dict[str, Variable] = {}
        for name, parameter in form.parameters.items():
            value = parameter.value if isinstance(parameter, Input) else None
            variables[name] = bound.get(name) or self._variable(name, value)
        return self.calls, variables, self._generations(form, variables)

    def _generations(self, form: SemanticCall, variables: dict[str, Variable]) -> list[Generation]:
        pieces = tuple(piece if isinstance(piece, str) else variables[piece.name] for piece in form.pieces)
        made: list[Generation] = []
        seen: dict[str, Variable] = {}
        taken: set[str] = set()
        for at, piece in enumerate(form.pieces):
            if isinstance(piece, str):
                continue
            variable, parameter = variables[piece.name], form.parameters[piece.name]
            if isinstance(parameter, Input):
                if variable.id not in taken:
                    seen[variable.id] = variable
                    taken.add(variable.id)
                continue
            name = self._node_name(f"{form.name}.{piece.name}")
            sources = tuple(seen.values())
            number = self.graph.generations
            generation = Generation(number, name, pieces, at, variable, sources, parameter.members, form.models)
            self.graph.add(generation)
            made.append(generation)
            seen = {variable.id: variable}
        return made

    def _node_name(self, name: str) -> str:
        """The name itself for the first of it, so that the same place has the same name in every run of a program."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _variable(self, name: str, content: str | None = None) -> Variable:
        variable = Variable(secrets.token_hex(12), name, content)
        self.graph.add_variable(variable)
        self._table.variables += 1
        return variable

    def _check_room(self, *, variables: int, calls: int, size: int) -> None:
        limits = self._table.config
        for name, have, more, limit in (
            ("session_variables", len(self.graph.variables), variables, limits.session_variables),
            ("session_calls", self.graph.generations, calls, limits.session_calls),
            ("session_bytes", self.held_bytes, size, limits.session_bytes),
        ):
            if more and have + more > limit:
                raise RequestFault(
                    413, name, f"the session would hold {have + more}, {limit} are allowed (parrot.{name})"
                )
        if size and self._table.held_bytes + size > limits.held_bytes:
            message = "the gateway holds as many bytes of sessions as it may (parrot.held_bytes); try again later"
            raise RequestFault(503, "parrot_full", message)

    def _hold(self, size: int) -> None:
        self.held_bytes += size
        self._table.held_bytes += size


class Sessions:
    """All open sessions, the one used longest ago first; and, for a while, the ids of those that expired."""

    def __init__(
        self,
        config: ParrotConfig,
        busy: Callable[[Session], bool] = lambda _: False,
        on_end: Callable[[Session], None] = lambda _: None,
    ) -> None:
        self.config = config
        self._busy = busy
        """Whether something runs for a session, or waits for its turn: then it is in use."""
        self._on_end = on_end
        """Ends what runs for a session."""
        self.open: OrderedDict[int, Session] = OrderedDict()
        self.variables = 0
        self.held_bytes = 0
        self._of_key: dict[str, int] = {}
        self._expired: OrderedDict[int, str] = OrderedDict()

    def begin(self, key_name: str, now: float) -> Session:
        """A new session of a key."""
        self.tick(now)
        config = self.config
        if len(self.open) >= config.sessions:
            message = f"there are {config.sessions} sessions (parrot.sessions); try again later"
            raise RequestFault(503, "sessions_full", message)
        count = self._of_key.get(key_name, 0)
        if key_name != NO_KEY and count >= config.sessions_per_key:
            message = f"this API key has {count} sessions (parrot.sessions_per_key); end one, or wait for one to expire"
            raise RequestFault(429, "key_sessions", message)
        self._of_key[key_name] = count + 1
        session = Session(self, key_name, now)
        self.open[session.id] = session
        return session

    def find(self, session_id: int, key_name: str | None, now: float) -> Session:
        """An open session, used now. `key_name` None: nobody says whose it is. 404, or 410 for one that expired."""
        self.tick(now)
        if (session := self.open.get(session_id)) is None:
            if (owner := self._expired.get(session_id)) is not None and key_name in (None, owner):
                raise self.expired_fault()
            raise unknown_session()
        if key_name not in (None, session.key_name):
            raise unknown_session()
        self.use(session, now)
        return session

    def use(self, session: Session, now: float) -> None:
        """It lives on from here."""
        if session.id in self.open:
            session.last_used = now
            self.open.move_to_end(session.id)

    def end(self, session: Session, fault: RequestFault) -> None:
        """A session is over: what runs for it is cancelled, who waits for a variable is told."""
        if self.open.pop(session.id, None) is None:
            return
        left = self._of_key[session.key_name] - 1
        if left:
            self._of_key[session.key_name] = left
        else:
            del self._of_key[session.key_name]
        self.variables -= len(session.graph.variables)
        self.held_bytes -= session.held_bytes
        self._on_end(session)
        session.graph.close(fault)

    def tick(self, now: float) -> None:
        """End what nobody has used for too long."""
        while self.open:
            session = next(iter(self.open.values()))
            if now - session.last_used < self.config.session_seconds:
                return
            if self._busy(session):
                self.use(session, now)
                continue
            self.end(session, self.expired_fault())
            self._expired[session.id] = session.key_name
            while len(self._expired) > self.config.expired_sessions:
                self._expired.popitem(last=False)

    def expired_fault(self) -> RequestFault:
        """What is said of a session that lived its time."""
        seconds = self.config.session_seconds
        message = f"session_id: the session expired, {seconds:g} s after its last use (parrot.session_seconds)"
        return RequestFault(410, "session_expired", message, param="session_id")


def session_id_of(body: dict[str, object]) -> int:
    """The session that a body names."""
    if "session_id" not in body:
        raise wrong("session_id", "is missing")
    value = body["session_id"]
    if type(value) is not int:
        raise wrong("session_id", "must be an integer")
    return value


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
