"""Who works on the batches? One loop for each unfinished batch.

What takes time comes from outside: answers, and `tick` with the clock. Nothing here sleeps by itself, so a day passes
in a test as fast as the test says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.batches import lines, results
from proxy.batches.announce import Announcement, announce, retire
from proxy.batches.disk import Disk, Stopped
from proxy.batches.finish import Finisher
from proxy.batches.places import Places
from proxy.batches.record import Usage
from proxy.batches.run import Ending, Run, Task
from proxy.errors import RequestFault, error_object
from proxy.identity_schemes import Identity, word
from proxy.inner import InnerAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.batches.config import BatchesConfig
    from proxy.batches.files import FileStore
    from proxy.batches.record import Batch, BatchTable
    from proxy.gateway import Gateway

_NOT_STARTED = Ending("failed", "", "")


class Runner:
    """Takes batches from `validating` to their end."""

    def __init__(
        self,
        gateway: Gateway,
        files: FileStore,
        table: BatchTable,
        config: BatchesConfig,
        clock: Callable[[], float],
        key_exists: Callable[[str], bool],
    ) -> None:
        self._gateway = gateway
        self._files = files
        self._table = table
        self._config = config
        self._clock = clock
        self._key_exists = key_exists
        self._disk = Disk(table, clock, gateway.log.event)
        self._finisher = Finisher(files, self._disk, clock)
        self._places = Places(config.in_flight)
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- from outside ---

    @property
    def in_flight(self) -> int:
        """Lines whose calls are under way."""
        return sum(len(run.calls) for run in self._runs.values())

    def begin(self, batch: Batch) -> None:
        """Work on a batch, a new one or one that an earlier process left; on one that comes too late, the next will."""
        if self._disk.closing:
            return
        run = Run(batch, self._files.path(batch.input_file_id), self._table.folder, self._config.in_flight)
        self._runs[batch.id] = run
        task = asyncio.get_running_loop().create_task(self._work(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def look_again(self, batch: Batch) -> None:
        """A batch has been cancelled."""
        if (run := self._runs.get(batch.id)) is not None:
            run.wake()

    def tick(self) -> None:
        """Time has passed, and keys may have changed."""
        for run in self._runs.values():
            run.key_gone = not self._key_exists(run.batch.key_name)
            run.wake()

    async def close(self) -> None:
        """Cancel the calls; the batches stay as they are on the disk."""
        self._disk.closing = True
        for run in self._runs.values():
            run.wake()
        await asyncio.gather(*self._tasks)

    # --- one batch ---

    async def _work(self, run: Run) -> None:
        batch = run.batch
        try:
            await self._from_start_to_end(run)
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001  (reported; the batch says that it failed)
            self._gateway.faults.report("a batch", error, batch=batch.id)
            await self._break_off(run)
        finally:
            self._stop_calls(run)
            self._places.give_back(len(run.answers))
            del self._runs[batch.id]

    async def _from_start_to_end(self, run: Run) -> None:
        batch = run.batch
        run.key_gone = not self._key_exists(batch.key_name)
        if batch.status == "finalizing":  # begun by an earlier process, whose count of bytes is not ours
            sizes = await self._disk.do(run, lambda: [file.size_on_disk() for file in (run.outputs, run.errors)])
            self._files.charge(batch.key_name, sum(sizes))
        else:
            ending = await self._reach_ending(run)
            await self._finisher.leave_behind(run, ending)
            batch.ending = ending.status
            if ending is not _NOT_STARTED:
                await self._disk.turn(run, "finalizing")
        await self._finisher.make_files(run)

    async def _break_off(self, run: Run) -> None:
        batch = run.batch
        message = "a fault of the gateway's; its log says more"
        batch.errors = [{"code": "internal_error", "message": message, "param": None, "line": None}]
        batch.ending = "failed"
        try:
            await self._finisher.make_files(run)  # of what was answered
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001  (reported)
            self._gateway.faults.report("ending a batch", error, batch=batch.id)
            batch.turn("failed", self._clock())

    async def _reach_ending(self, run: Run) -> Ending:
        """Check the file and call its lines, until the batch ends, however it does."""
        batch = run.batch
        if not batch.total and not await self._check(run):
            return _NOT_STARTED
        await self._recover(run)
        left = batch.total - batch.completed - batch.failed
        seconds = max(0.0, batch.expires_at - self._clock())
        announced = Announcement(batch.id, batch.key_name, batch.endpoint, batch.model, left, seconds)
        announce(self._gateway, announced)
        try:
            return await self._call_lines(run)
        finally:
            retire(self._gateway, batch.key_name, batch.id)

    async def _check(self, run: Run) -> bool:
        """Look at the whole file; whether it is good."""
        batch = run.batch
        json_values = self._gateway.server.limits.json_values
        rules = lines.Rules(batch.endpoint, self._config.batch_lines, self._config.line_bytes, json_values)
        checked = await self._disk.do(run, lines.check, run.input_path, rules)
        batch.errors = checked.errors
        if checked.errors:
            return False
        batch.total, batch.last_line, batch.model = checked.total, checked.last_line, checked.model
        if batch.status == "validating":  # else it has been cancelled meanwhile
            await self._disk.turn(run, "in_progress")
        return True

    async def _recover(self, run: Run) -> None:
        """What an earlier process did."""
        batch = run.batch
        run.done = bytearray(batch.last_line + 1)
        batch.usage = Usage()
        found = []
        for file in (run.outputs, run.errors):
            found.append(await self._disk.do(run, file.recover, batch.id, run.done))
            self._count(batch, found[-1].usage, file.size)
        batch.completed, batch.failed = (part.lines for part in found)

    async def _call_lines(self, run: Run) -> Ending:
        while (ending := run.ending(self._clock())) is None and not self._disk.closing:
            if run.answers:
                await self._record(run)
            elif not run.waiting and not run.all_read:
                await self._read(run)
            elif not run.may_call(self._clock()):
                self._places.leave(run)
                await run.sleep()
            elif run.granted or self._places.ask(run):
                self._call(run)
                await asyncio.sleep(0)  # a hundred calls at once would keep everyone else waiting
            else:
                await run.sleep()
        self._stop_calls(run)
        if run.answers:
            await self._record(run)
        if ending is None:
            raise Stopped
        return ending

    async def _read(self, run: Run) -> None:
        position = run.offset, run.number, run.done
        chunk = await self._disk.do(run, lines.read_chunk, run.input_path, run.batch.endpoint, *position)
        run.waiting.extend(map(Task, chunk.lines))
        run.offset, run.number, run.all_read = chunk.offset, chunk.number, chunk.ended

    # --- calls ---

    def _call(self, run: Run) -> None:
        run.granted -= 1
        task, batch = run.waiting.popleft(), run.batch
        line = task.line
        identity = Identity(
            batch.id,
            "batch",
            node=word(line.custom_id) or str(line.number),
            workflow_class="batch",
            deadline_ms=max(1.0, (batch.expires_at - self._clock()) * 1e3),
        )

        def done(answer: InnerAnswer) -> None:
            if run.calls.pop(line.number, None) is not None:  # else it was dropped just as it ended
                self._answered(run, task, answer)

        try:
            call = self._gateway.inner.start(batch.key_name, batch.endpoint, line.body, identity, on_done=done)
        except RequestFault as fault:
            body = error_object(fault.status, fault.reason, fault.message, fault.param)
            self._answered(run, task, InnerAnswer(fault.status, {}, body, whole=True, call=None))
        else:
            run.calls[line.number] = call

    def _answered(self, run: Run, task: Task, answer: InnerAnswer) -> None:
        if not run.take_answer(task, answer, self._config.attempts, self._clock()):
            self._places.give_back(1)
        run.wake()

    def _stop_calls(self, run: Run) -> None:
        calls, run.calls = run.calls, {}
        for call in calls.values():
            call.cancel()
        self._places.give_back(len(calls))
        self._places.leave(run)

    async def _record(self, run: Run) -> None:
        """Put the answers that are there on the disk. Only then are their lines done and their places free."""
        batch, answers = run.batch, list(run.answers)
        told = [(task.line.number, task.line.custom_id, answer) for task, answer in answers]
        good, bad = await asyncio.to_thread(results.write, batch.id, told)
        for file, data in ((run.outputs, good.data), (run.errors, bad.data)):
            if data:
                await self._disk.do(run, file.append, data)
        del run.answers[: len(answers)]
        self._places.give_back(len(answers))
        for task, answer in answers:
            run.done[task.line.number] = True
            batch.completed += answer.ok
            batch.failed += not answer.ok
        for written in (good, bad):
            self._count(batch, written.usage, len(written.data))
        run.full = self._files.room(batch.key_name) <= 0

    def _count(self, batch: Batch, usage: Usage, count: int) -> None:
        batch.usage.add(usage)
        self._files.charge(batch.key_name, count)
