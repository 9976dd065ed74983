"""Anything may happen to engines that may be parked, in any order: nothing is lost or sent to a sleeper."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.actions import Abort, Dispatch, Park, PolicyFailed, Reject, Wake
from scheduler.events import CallFailed, ClientGone, EnginesChanged, EngineStatus, ExperimentTick, PolicyChanged
from scheduler.parking import ParkingRules
from tests.sim.parking_desk import IDLE_SECONDS, Desk, EngineAsleep, EngineParked, EngineWoken

NAMES = "abc"
engines = st.sampled_from(NAMES)


class World(RuleBasedStateMachine):
    """`asleep`: what is really so; `moves`: what is under way at each engine."""

    @initialize(
        policy=st.sampled_from(("passthrough", "fifo", "las", "parrot", "joule")),
        asleep=st.sets(engines),
        least=st.integers(1, 2),
        tries=st.integers(1, 3),
    )
    def begin(self, policy: str, asleep: set[str], least: int, tries: int) -> None:
        rules = ParkingRules(awake_least=least, wake_from_calls=3, wake_tries=tries, retry_seconds=1.0)
        self.asleep = set(asleep)
        self.moves: dict[str, Park | Wake] = {}
        self.seen = 0
        self.live: dict[str, str | None] = {}
        self.configured = NAMES
        self.desk = Desk(NAMES, policy=policy, rules=rules)
        self.look()

    def look(self) -> None:
        """Carry out what was said."""
        fresh, self.seen = self.desk.said[self.seen :], len(self.desk.said)
        for action in fresh:
            assert not isinstance(action, PolicyFailed), action
            if isinstance(action, Dispatch):
                assert action.engine not in self.moves, "it is on its way to sleep, or not awake yet"
                self.live[action.call_id] = action.engine
            elif isinstance(action, Reject):
                del self.live[action.call_id]
            elif isinstance(action, Park | Wake):
                assert action.engine not in self.moves, "two moves of one engine"
                assert action.engine in self.configured
                self.moves[action.engine] = action
                if isinstance(action, Park):
                    assert action.engine not in self.live.values(), "under its calls"
            elif isinstance(action, Abort):
                assert action.call_id not in self.live

    @rule(name=engines)
    def probe(self, name: str) -> None:
        """The shell asks no engine that is being moved, nor one that has gone."""
        if name in self.configured and name not in self.moves:
            self.desk.tell(EngineAsleep(name, name in self.asleep))
            self.look()

    @rule(name=engines)
    def restarted(self, name: str) -> None:
        if name not in self.moves:
            self.asleep.discard(name)

    @rule(name=engines)
    def put_to_sleep_by_somebody(self, name: str) -> None:
        if name not in self.moves:
            self.asleep.add(name)

    @precondition(lambda self: self.moves)
    @rule(data=st.data(), done=st.booleans(), seconds=st.integers(0, 5))
    def answered(self, data: st.DataObject, done: bool, seconds: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.moves)))
        self.desk.wait(seconds)
        self.look()
        parks = isinstance(self.moves.pop(name), Park)
        if done:
            (self.asleep.add if parks else self.asleep.discard)(name)
        if name in self.configured:
            self.desk.tell((EngineParked if parks else EngineWoken)(name, done, 1.0 * seconds, "" if done else "no"))
        self.look()

    @rule(count=st.integers(1, 6))
    def calls(self, count: int) -> None:
        for _ in range(count):
            self.live[f"c{self.desk.calls + 1}"] = None
            self.desk.call()
            self.look()

    @precondition(lambda self: any(self.live.values()))
    @rule(data=st.data(), how=st.sampled_from(("done", "gone", "failed")))
    def ends(self, data: st.DataObject, how: str) -> None:
        call = data.draw(st.sampled_from(sorted(name for name, engine in self.live.items() if engine is not None)))
        if how == "failed":
            self.live[call] = None
            self.desk.tell(CallFailed(call, "reset", retryable=True, engine_fault=True))
        else:
            del self.live[call]
            self.desk.done(call) if how == "done" else self.desk.tell(ClientGone(call))
        self.look()

    @rule(name=engines, healthy=st.booleans())
    def health(self, name: str, healthy: bool) -> None:
        self.desk.tell(EngineStatus(name, healthy, ("m",)))
        self.look()

    @rule(seconds=st.sampled_from((1, 3, int(IDLE_SECONDS) + 1)))
    def time(self, seconds: int) -> None:
        self.desk.wait(seconds)
        self.look()

    @rule(name=st.sampled_from(("fifo", "joule", "las")))
    def policy(self, name: str) -> None:
        self.desk.tell(PolicyChanged(name))
        self.look()

    @rule(names=st.sampled_from(("abc", "ab", "a")), park=st.sampled_from(("abc", "bc", "")))
    def reload(self, names: str, park: str) -> None:
        if self.moves or self.live:  # what comes of those is another test's
            return
        self.configured = names
        self.desk.tell(EnginesChanged(self.desk.specs(names, park=park)))
        for name in names:
            self.desk.tell(EngineStatus(name, True, ("m",)))
        self.look()

    @rule()
    def experiments_tick(self) -> None:
        self.desk.tell(ExperimentTick(self.desk.now))
        self.look()

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if hasattr(self, "desk"):
            assert self.desk.scheduler.calls.keys() == self.live.keys()

    def teardown(self) -> None:
        """When engines behave, whatever was held runs."""
        if not hasattr(self, "desk"):
            return
        for _ in range(200):  # a call may wait for 600 s
            for name in list(self.moves):
                self.answer_well(name)
            for name in self.configured:
                self.desk.tell(EngineStatus(name, True, ("m",)))
                self.probe(name)
            for call in [call for call, engine in self.live.items() if engine is not None]:
                del self.live[call]
                self.desk.done(call)
                self.look()
            self.desk.wait(1)
            self.look()
            if not self.live:
                return
        raise AssertionError(f"held for ever: {self.live}")

    def answer_well(self, name: str) -> None:
        """A move has been done."""
        parks = isinstance(self.moves.pop(name), Park)
        (self.asleep.add if parks else self.asleep.discard)(name)
        if name in self.configured:
            self.desk.tell((EngineParked if parks else EngineWoken)(name, True, 1.0))
        self.look()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=40, stateful_step_count=40)
