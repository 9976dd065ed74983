"""/v1/batches: create, list, show, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.batches import form
from proxy.batches.disk import tell
from proxy.batches.files import new_id as new_file_id
from proxy.batches.record import Batch, new_id
from proxy.errors import RequestFault

if TYPE_CHECKING:
    from proxy.batches.door import BatchDoor
    from proxy.own.request import OwnRequest

_PAGE = (20, 100)
_RETRY_SECONDS = 30.0


class BatchesApi:
    """The handlers."""

    def __init__(self, door: BatchDoor) -> None:
        self._door = door

    async def create(self, request: OwnRequest) -> None:
        """POST /v1/batches"""
        batch = await self._door.whole(self._begin(request))
        request.answer_json(batch.shown())

    def _new(self, request: OwnRequest) -> Batch:
        door, key_name = self._door, request.key_name
        (files, table, _), config, now = door.work, door.config, door.clock()
        order = form.read_order(request.json())
        file = files.find(key_name, order.input_file_id)
        if file is None:
            raise RequestFault(404, "file_not_found", "there is no such file", param="input_file_id")
        if file.purpose != "batch":
            message = f'the file was not uploaded with the purpose "batch", but is a {file.purpose}'
            raise RequestFault(400, "invalid_parameter", message, param="input_file_id")
        unfinished = table.unfinished()
        of_key = sum(batch.key_name == key_name for batch in unfinished)
        if of_key >= config.key_batches or len(unfinished) >= config.total_batches:
            message = (
                f"this API key has {of_key} batches that have not ended (batches.key_batches), all keys have"
                f" {len(unfinished)} (batches.total_batches); wait for one to end"
            )
            raise RequestFault(429, "too_many_batches", message, retry_after_seconds=_RETRY_SECONDS)
        if files.room(key_name) <= 0:
            message = "no room is left for results (batches.key_bytes, batches.total_bytes); delete some files"
            raise RequestFault(413, "storage_full", message)
        return Batch(
            new_id(),
            key_name,
            order.endpoint,
            file.id,
            now,
            now + config.window_seconds,
            config.keep_seconds if order.output_seconds is None else order.output_seconds,
            new_file_id(),
            new_file_id(),
            order.metadata,
        )

    async def _begin(self, request: OwnRequest) -> Batch:
        door = self._door
        _, table, runner = door.work
        batch = self._new(request)
        await table.add(batch)  # counted before it waits: no other request comes between the look and this
        tell(door.gateway.log.event, batch)
        runner.begin(batch)
        return batch

    async def show_all(self, request: OwnRequest) -> None:
        """GET /v1/batches"""
        batches = self._door.work.table.of_key(request.key_name)
        request.answer_json(form.read_page(request, batches, *_PAGE))

    async def show(self, request: OwnRequest) -> None:
        """GET /v1/batches/{id}"""
        request.answer_json(self._batch(request).shown())

    async def cancel(self, request: OwnRequest) -> None:
        """POST /v1/batches/{id}/cancel"""
        batch = self._batch(request)
        if not batch.unfinished:
            raise RequestFault(400, "batch_ended", f"the batch is {batch.status} already", param="batch_id")
        await self._door.whole(self._cancel(batch))
        request.answer_json(batch.shown())

    async def _cancel(self, batch: Batch) -> None:
        door = self._door
        _, table, runner = door.work
        if batch.status not in ("validating", "in_progress"):  # it is being ended, or has been meanwhile
            return
        batch.turn("cancelling", door.clock())
        runner.look_again(batch)
        await table.save(batch)
        tell(door.gateway.log.event, batch)

    def _batch(self, request: OwnRequest) -> Batch:
        batch = self._door.work.table.find(request.key_name, request.params["id"])
        if batch is None:
            raise RequestFault(404, "batch_not_found", "there is no such batch", param="batch_id")
        return batch
