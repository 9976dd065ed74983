"""What runs an experiment in a gateway: it is started, told the time, kept on disk, and taken up after a restart."""

from __future__ import annotations

import asyncio
import time
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.ab.caches import reset
from proxy.ab.fitting import filled_in, problems_here
from proxy.ab.store import ExperimentStore, StoreFault
from scheduler.actions import BlocksClosed, ResetPrefixCache
from scheduler.events import ExperimentStarted, ExperimentStopped, ExperimentTick, PrefixCacheReset
from scheduler.experiments.definition import ExperimentError, definition_of
from scheduler.experiments.plan import detectable_effect
from scheduler.experiments.saved import end, saved

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.config import Config
    from proxy.gateway import Gateway
    from scheduler.actions import ExperimentEnded
    from scheduler.experiments.definition import Definition

TICK_SECONDS = 1.0
SAVE_SECONDS = 5.0
SOONEST_SECONDS = 0.01


class Experiments:
    """All experiments of this gateway. `changed`: called when another policy decides."""

    def __init__(self, gateway: Gateway, config: Config, changed: Callable[[], None]) -> None:
        self._gateway = gateway
        self._desk = gateway.scheduler.experiments
        self._changed = changed
        self._pace = config.experiments.pace
        self.store = None if config.state_dir is None else ExperimentStore(config.state_dir)
        self._timer: asyncio.TimerHandle | None = None
        self._saved_at = 0.0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        gateway.tell_experiment = self._said

    # --- start and stop ---

    def begin(self) -> None:
        """Take up what an earlier process left running. One that cannot go on is said in the log and left as it is."""
        for name in () if self.store is None else self.store.names():
            try:
                self._take_up(name)
            except (ExperimentError, StoreFault, OSError) as error:
                self._gateway.log.event("experiment_not_resumed", experiment=name, detail=str(error))

    def _take_up(self, name: str) -> None:
        assert self.store is not None
        state = self.store.state(name)
        if state is None or state.get("ended_at") is not None:
            return
        definition = definition_of(state["definition"])
        if found := self._problems(definition, again=True):
            raise ExperimentError(found)
        self.store.go_on(name)
        self._tell(ExperimentStarted(definition.as_json(), self._wall(), state, self._pace))
        status = self._desk.status(name, monotonic()) or {}
        self._gateway.log.event("experiment_resumed", experiment=name, block=status.get("block"))

    async def start(self, wanted: object) -> dict[str, Any]:
        """ExperimentError, with each problem; then nothing has changed. OSError from the disk."""
        if not isinstance(wanted, dict):
            raise ExperimentError(["the body must be a definition, as `joulegate ab plan --write` makes it"])
        definition = filled_in(definition_of(wanted), self._gateway.scheduler)
        if found := self._problems(definition) or await self._caches(definition):
            raise ExperimentError(found)
        if found := self._problems(definition):  # engines were asked meanwhile
            raise ExperimentError(found)
        assert self.store is not None
        now = self._wall()
        try:
            self.store.begin(definition, now, self._pace)
        except FileExistsError:
            taken = f'id: there was an experiment "{definition.id}" already; its results are kept: take another id'
            raise ExperimentError([taken]) from None
        try:
            self._tell(ExperimentStarted(definition.as_json(), now, None, self._pace))
        except ValueError:
            self.store.forget(definition.id)
            raise
        self._save()
        self._gateway.log.event("experiment_started", experiment=definition.id, definition=definition.as_json())
        return {
            "detectable": detectable_effect(definition.spread, definition.pairs),
            **(self.status(definition.id) or {}),
        }

    def stop(self, name: str, why: str = "stopped by an operator") -> dict[str, Any] | None:
        """None: it does not run."""
        if name not in self._desk.running:
            return None
        self._tell(ExperimentStopped(name, why))
        return self.status(name)

    def _problems(self, definition: Definition, *, again: bool = False) -> list[str]:
        if self.store is None:
            how = "set it (for `up`: JOULEGATE_STATE_DIR in the environment) and start again"
            return [f"state_dir: is not configured, and an experiment must outlive a restart: {how}"]
        running = [each.experiment.definition for each in self._desk.running.values()]
        return problems_here(definition, self._gateway.scheduler, self._pace, running=running, again=again)

    async def _caches(self, definition: Definition) -> list[str]:
        if definition.reset_prefix_cache == "no":
            return []
        engines = [self._gateway.engines[name] for name in definition.engines]
        failed = [one for one in await asyncio.gather(*map(reset, engines)) if not one.done]
        for one in failed:
            self._gateway.log.event("prefix_cache_not_reset", experiment=definition.id, **one._asdict())
        if definition.reset_prefix_cache == "if_possible":
            return []
        return [
            f'reset_prefix_cache: {one.engine}: {one.detail}. Set it to "if_possible" or "no", and the report names the'
            " prefix cache as carry-over"
            for one in failed
        ]

    async def _reset(self, engine: str) -> None:
        there = self._gateway.engines.get(engine)
        done = PrefixCacheReset(engine, False, "it is gone") if there is None else await reset(there)
        if not done.done:
            self._gateway.log.event("prefix_cache_not_reset", **done._asdict())
        self._gateway.tell(done)

    # --- time ---

    def _wall(self) -> float:
        return time.time() * self._pace

    def _tell(self, event: ExperimentStarted | ExperimentStopped | ExperimentTick) -> None:
        before = list(self._desk.running)
        self._gateway.tell(event)
        if list(self._desk.running) != before:
            self._changed()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        if self._closed or not self._desk.running:
            return
        edge = self._desk.next_edge(now)
        wait = TICK_SECONDS if edge is None else min(TICK_SECONDS / self._pace, max(edge - now, SOONEST_SECONDS))
        self._timer = asyncio.get_running_loop().call_later(wait, self._tick)

    def _tick(self) -> None:
        try:
            self._tell(ExperimentTick(self._wall()))
            if monotonic() - self._saved_at >= SAVE_SECONDS:
                self._save()
        except Exception as error:  # noqa: BLE001  (reported; the next tick must come)
            self._gateway.faults.report("an experiment's tick", error)
            self._arm()

    def close(self) -> None:
        """The process goes down: what is known now is what the next one goes on from."""
        self._closed = True
        self._arm()
        self._save()

    # --- what it says ---

    def _said(self, action: BlocksClosed | ExperimentEnded | ResetPrefixCache) -> None:
        if isinstance(action, ResetPrefixCache):
            task = asyncio.get_running_loop().create_task(self._reset(action.engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        store, log = self.store, self._gateway.log
        if store is None:
            return
        try:
            if isinstance(action, BlocksClosed):
                store.append(action.experiment, action.rows)
                self._save()
                return
            experiment = self._desk.over_now[action.experiment]
            store.append(action.experiment, [end(experiment)])
            store.save(action.experiment, saved(experiment, self._wall()))
        except OSError as error:
            log.event("experiment_not_saved", experiment=action.experiment, detail=str(error))
        if not isinstance(action, BlocksClosed):
            log.event("experiment_ended", experiment=action.experiment, state=action.state, detail=action.why)
            self._changed()

    def _save(self) -> None:
        if self.store is None:
            return
        self._saved_at = monotonic()
        for state in self._desk.saved(monotonic()):
            name = state["definition"]["id"]
            try:
                self.store.save(name, state)
            except OSError as error:
                self._gateway.log.event("experiment_not_saved", experiment=name, detail=str(error))

    # --- looking ---

    def status(self, name: str) -> dict[str, Any] | None:
        """Of one that runs, or ended in this process not long ago."""
        status = self._desk.status(name, monotonic())
        return None if status is None else {**status, "pace": self._pace}

    def describe(self, name: str) -> dict[str, Any] | None:
        """Of any of which there are files; None: there is none."""
        if (status := self.status(name)) is not None:
            return status
        if self.store is None or name not in self.store.names():
            return None
        try:
            state = self.store.state(name)
        except StoreFault as error:
            return {"id": name, "state": "damaged", "detail": str(error)}
        if state is None:
            return {"id": name, "state": "damaged", "detail": "it has no saved state"}
        ended = state["ended_at"]
        word = "not running" if ended is None else "finished" if state["stopped_why"] is None else "stopped"
        known = ("started_at", "ended_at", "stopped_why", "marked")
        done = dict(zip(("control", "treatment"), state["closed_blocks"], strict=True))
        return {"id": name, "state": word, "blocks_done": done, **{each: state[each] for each in known}}

    def all(self) -> list[dict[str, Any]]:
        """All, by name."""
        names = [] if self.store is None else self.store.names()
        return [told for name in names if (told := self.describe(name)) is not None]
