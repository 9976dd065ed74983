"""The energy of all engines: calls, samples and counters in; models that learn, and bills, out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from scheduler.energy.bill import Bill, BillLimits
from scheduler.energy.bill_prices import Tariff, tariff_of
from scheduler.energy.budgets import JouleBudgets, JouleQuota, Unavailable
from scheduler.workflow.spec import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.energy.batch import Prefixes
    from scheduler.energy.bill_accounts import Source
    from scheduler.energy.bill_calls import Estimate
    from scheduler.energy.model import EnergyModel, Learned, Prior
    from scheduler.energy.window import Counters, MeterSample, Window
    from scheduler.events import CallArrived, CallFinished
    from scheduler.quotas import Refusal


OUTPUT_TOKENS_UNSAID = 256
"""Of a call with a budget that says no limit: what is reserved for it."""
BYTES_A_TOKEN = 4.0
"""Of text, before the engine has said what it makes of prompts."""
BATCH_MOST = 4.0
"""Company that a call is expected to have, itself included, where there is as much now: few, so that rather too much
is reserved."""


@dataclass(frozen=True, slots=True)
class EnergyRules:
    """Of the whole desk; written at the head of an event log."""

    window_seconds: float = 2.4
    accounts: int = 10_000
    settled_calls: int = 16_384
    prefixes_across_keys: bool = True
    workflow_budgets: int = 10_000
    budgets_without_energy: Unavailable = "pass"


class Listener(Protocol):
    """Who else wants to hear of it, as it happens: the cap controller."""

    def sent(self, engine: str, call_id: str, now: float, *, streamed: bool) -> None:
        """A call was given to an engine."""

    def first_token(self, engine: str, call_id: str, now: float) -> None:
        """The first event of its answer."""

    def finished(self, engine: str, call_id: str, output_tokens: int | None, now: float) -> None:
        """Its answer is complete."""

    def gone(self, engine: str, call_id: str) -> None:
        """It left the engine without a whole answer."""

    def sampled(self, engine: str, sample: MeterSample) -> None:
        """The engine's meter was read."""

    def counted(self, engine: str, counters: Counters) -> None:
        """The engine was probed."""

    def window(self, engine: str, window: Window) -> None:
        """A window has closed, and was learned from."""


class AlsoListens(Protocol):
    """Who wants to hear of closed windows only."""

    def __call__(self, window: Window, *, simulated: bool) -> None:
        """A window has closed. `simulated`: the engine, or its meter, is the twin's."""


class EngineDesk:
    """One engine's windows and model."""

    def __init__(self, name: str, now: float, rules: EnergyRules) -> None:
        from scheduler.energy.windows import WindowMaker, WindowRule  # with numpy: only those pay for it who measure

        self.name = name
        self.windows = WindowMaker(name, now, WindowRule(rules.window_seconds))
        self.model: EnergyModel | None = None
        self.simulated = False
        """The engine, or its meter, is the twin's."""
        self.last_window: Window | None = None
        self.last_learned: Learned | None = None


class EnergyDesk:
    """All engines. Times are seconds of the events' clock."""

    def __init__(self, rules: EnergyRules, quotas: Iterable[JouleQuota], now: float) -> None:
        self.rules = rules
        self.engines: dict[str, EngineDesk] = {}
        self.listener: Listener | None = None
        self.also: AlsoListens | None = None
        """Told of windows: a running experiment."""
        self.booked_until = now
        """The end of the last window that is in the bill."""
        self.bill = Bill(
            BillLimits(
                accounts=rules.accounts,
                settled_calls=rules.settled_calls,
                prefixes_across_keys=rules.prefixes_across_keys,
            )
        )
        without, workflows = rules.budgets_without_energy, rules.workflow_budgets
        self.budgets = JouleBudgets(quotas, now, unavailable=without, workflows_max=workflows)

    def engine(self, name: str, now: float) -> EngineDesk:
        """An engine's desk, made when something can be told of its energy. Calls to others cost nothing here."""
        desk = self.engines.get(name)
        if desk is None:
            desk = self.engines[name] = EngineDesk(name, now, self.rules)
        return desk

    def source(self, name: str) -> Source:
        """What joules and watts of an engine are now; `unavailable`: nothing tells of them."""
        desk = self.engines.get(name)
        if desk is None:
            return "unavailable"
        window = desk.last_window
        if desk.simulated or (window is not None and window.source == "simulated"):
            return "simulated"
        if window is not None and window.energy.gpu is not None:
            return "measured"
        return "unavailable" if desk.model is None else "modelled"

    def keep(self, names: Iterable[str]) -> None:
        """Forget engines that are gone; what they used stays in the accounts."""
        for name in self.engines.keys() - set(names):
            del self.engines[name]

    # --- a call's life ---

    def admit(self, event: CallArrived, now: float) -> Refusal | None:
        """Reserve in the budgets of its key and workflow, or say why not. Costs nothing where there are none."""
        budgets = self.budgets
        if event.energy_budget_joules is None and not budgets.by_key and not budgets.by_workflow:
            return None
        key, workflow_id, budget = event.key, event.workflow_id, event.energy_budget_joules
        return budgets.admit(event.call_id, key, workflow_id, budget, self._expected(event), now)

    def _expected(self, event: CallArrived) -> float | None:
        """What the call may use: at its limit of output tokens, on the engine that is modelled first. None: unknown."""
        for desk in self.engines.values():
            if desk.model is not None:
                output = event.expected_output_tokens or event.max_output_tokens or OUTPUT_TOKENS_UNSAID
                book = self.bill.engines.get(desk.name)
                batch = min(1.0 + (0 if book is None else book.calls), BATCH_MOST)
                return desk.model.call(event.prompt_tokens_estimate, 0.0, output, batch).joules.value
        return None

    def sent(self, event: CallArrived, engine: str, now: float, prefix: tuple[int, ...] = ()) -> None:
        """A call was given to an engine, for its first time or again. `prefix`: see NodeSpec."""
        desk = self.engines.get(engine)
        if desk is None:
            return
        call_id, key, model, workflow_id, prompt, output = event[:6]
        windows, streamed = desk.windows, event.streamed
        prefixes = _beginnings(prefix, windows.prompt_ratio) if prefix else ()
        windows.sent(call_id, prompt, output, now, streamed=streamed, prefixes=prefixes)
        self.bill.dispatched(call_id, key, workflow_id, model, engine, now, prefixes)
        if (listener := self.listener) is not None:
            listener.sent(engine, call_id, now, streamed=streamed)

    def placed(self, call_id: str, engine: str | None, prefix: tuple[int, ...]) -> None:
        """A call's content was looked at, perhaps after it was sent: how its prompt begins. `prefix`: see NodeSpec."""
        desk = None if engine is None else self.engines.get(engine)
        if desk is not None and prefix:
            prefixes = _beginnings(prefix, desk.windows.prompt_ratio)
            desk.windows.placed(call_id, prefixes)
            self.bill.placed(call_id, prefixes)

    def first_token(self, call_id: str, engine: str, now: float) -> None:
        """The first event of its stream."""
        if (desk := self.engines.get(engine)) is not None:
            desk.windows.first_token(call_id, now)
            if (listener := self.listener) is not None:
                listener.first_token(engine, call_id, now)

    def left(self, call_id: str, engine: str, now: float) -> None:
        """An attempt failed and the call is not over: it may be given to another engine."""
        if (desk := self.engines.get(engine)) is not None:
            desk.windows.failed(call_id, now)
            self._gone(engine, call_id)

    def finished(self, event: CallFinished, engine: str, now: float) -> None:
        """A call was answered."""
        call_id, prompt, cached, output, seen = event[:5]
        if (desk := self.engines.get(engine)) is not None:
            desk.windows.finished(call_id, prompt, cached, output, now)
            if (listener := self.listener) is not None:
                listener.finished(engine, call_id, output if output is not None else seen or None, now)
            guess = self.bill.ended(call_id, prompt, cached, seen if output is None and seen else output, now)
            if self.budgets.open_calls:
                self._reckoned(call_id, guess, now)
        else:
            self.budgets.settled(call_id, None, now)

    def stopped(self, event: CallArrived, engine: str | None, tokens_seen: int, now: float) -> None:
        """A call is over without a whole answer, held or running. Of no effect on one that is over already."""
        call_id = event.call_id
        if engine is None:
            self._ended(call_id, None, None, None, now)
            self.budgets.settled(call_id, 0.0, now)
        elif (desk := self.engines.get(engine)) is None:
            self.budgets.settled(call_id, None, now)
        elif desk.windows.failed(call_id, now):
            self._gone(engine, call_id)
            prompt = event.prompt_tokens_estimate
            self._ended(call_id, prompt, None, max(tokens_seen - prompt, 1), now)

    def _gone(self, engine: str, call_id: str) -> None:
        if (listener := self.listener) is not None:
            listener.gone(engine, call_id)

    def _ended(
        self, call_id: str, prompt: float | None, cached: float | None, output: float | None, now: float
    ) -> None:
        self._reckoned(call_id, self.bill.ended(call_id, prompt, cached, output, now), now)

    def _reckoned(self, call_id: str, guess: Estimate | None, now: float) -> None:
        if guess is None:  # no engine whose energy is told was given it
            self.budgets.settled(call_id, None, now)
        else:
            self.budgets.ended(call_id, guess.joules)

    def guess(
        self, call_id: str, prompt: float | None, cached: float | None, output: float | None, now: float
    ) -> Estimate | None:
        """What a call is thought to have used if it ends now, for its answer. None: nothing is told of its engine."""
        return self.bill.guess(call_id, prompt, cached, output, now)

    # --- meters and probes ---

    def believe(self, name: str, prior: Prior, state: dict[str, Any] | None, now: float, *, simulated: bool) -> None:
        """Begin to model an engine. `state`: what an earlier process had learned; ValueError if it is not that."""
        from scheduler.energy.model import EnergyModel  # with numpy, whose memory only those pay who measure

        desk = self.engine(name, now)
        model = EnergyModel(prior) if state is None else EnergyModel.restore(state, prior)
        desk.model, desk.simulated = model, simulated
        self.bill.priced(name, tariff_of(model), simulated=simulated)

    def sampled(self, name: str, sample: MeterSample, now: float) -> None:
        """A meter was read. From then on the engine's calls are followed."""
        desk = self.engine(name, now)
        if (listener := self.listener) is not None:
            listener.sampled(name, sample)
        if (window := desk.windows.sample(sample)) is not None:
            self._close(desk, window, now)

    def counted(self, name: str, counters: Counters, progress: Iterable[tuple[str, int]], now: float) -> None:
        """The engine's own counters, and how many tokens its streams have shown so far."""
        desk = self.engines.get(name)
        if desk is None:
            return
        if (listener := self.listener) is not None:
            listener.counted(name, counters)
        windows = desk.windows
        if windows.ends_at(counters.at):  # what is seen in between would be overwritten
            windows.progressed(progress, now)
        if (window := windows.counters(counters)) is not None:
            self._close(desk, window, now)

    def timed(self, now: float) -> None:
        """Engines that nobody measures or probes close their windows by the clock, so that their calls are settled."""
        for desk in self.engines.values():
            windows = desk.windows
            if now - windows.since > 2 * self.rules.window_seconds and (window := windows.close(now)) is not None:
                self._close(desk, window, now)

    def close(self, now: float) -> None:
        """The process ends: what is open is billed as it stands."""
        for desk in self.engines.values():
            if (window := desk.windows.close(now)) is not None:
                self._close(desk, window, now)

    def _close(self, desk: EngineDesk, window: Window, now: float) -> None:
        tariff: Tariff | None = None
        if desk.model is not None:
            desk.last_learned = desk.model.learn(window)
            tariff = tariff_of(desk.model, window)
        desk.last_window = window
        if (listener := self.listener) is not None:
            listener.window(desk.name, window)
        if self.also is not None:
            self.also(window, simulated=desk.simulated)
        self.booked_until = max(self.booked_until, window.end)
        closed = self.bill.close(window, tariff)
        desk.windows.paced(self.bill.engines[desk.name].pace(window))
        for call in closed.settled if self.budgets.open_calls else ():
            self.budgets.settled(call.id, call.joules, now)
        for moved in closed.moved:
            self.budgets.moved(*moved)

    def validate(self) -> None:
        """Every invariant. AssertionError otherwise."""
        for desk in self.engines.values():
            desk.windows.validate()
        self.bill.validate()


def _beginnings(prefix: tuple[int, ...], tokens_ratio: float) -> Prefixes:
    """With their lengths in tokens, about."""
    each = tokens_ratio / BYTES_A_TOKEN
    return tuple([(name, size * each) for name, size in zip(prefix, PREFIX_BYTES, strict=False)])
