"""/v1/files: upload, list, show, download, delete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.batches import form
from proxy.batches.files import StoredFile, new_id
from proxy.errors import RequestFault

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.batches.door import BatchDoor
    from proxy.own.request import OwnRequest

PIECE_BYTES = 262_144
_PAGE = (10_000, 10_000)


class FilesApi:
    """The handlers."""

    def __init__(self, door: BatchDoor) -> None:
        self._door = door

    async def upload(self, request: OwnRequest) -> None:
        """POST /v1/files"""
        file = await self._door.whole(self._upload(request))
        request.answer_json(file.shown())

    async def _upload(self, request: OwnRequest) -> StoredFile:
        door = self._door
        files, config, now = door.work.files, door.config, door.clock()
        body, content_type = request.body, request.header(b"content-type")
        upload = await asyncio.to_thread(form.read_upload, body, content_type, config.file_bytes)
        keep_seconds = config.keep_seconds if upload.keep_seconds is None else upload.keep_seconds
        file = StoredFile(
            new_id(), request.key_name, upload.filename, upload.purpose, len(upload.data), now, now + keep_seconds
        )
        await files.add(file, upload.data)
        return file

    async def show_all(self, request: OwnRequest) -> None:
        """GET /v1/files"""
        files = self._door.work.files.of_key(request.key_name)
        if purpose := request.query().get("purpose"):
            files = [file for file in files if file.purpose == purpose]
        request.answer_json(form.read_page(request, files, *_PAGE))

    async def show(self, request: OwnRequest) -> None:
        """GET /v1/files/{id}"""
        request.answer_json(self._file(request).shown())

    async def delete(self, request: OwnRequest) -> None:
        """DELETE /v1/files/{id}"""
        file = self._file(request)
        await self._door.whole(self._delete(file))
        request.answer_json({"id": file.id, "object": "file", "deleted": True})

    async def _delete(self, file: StoredFile) -> None:
        work = self._door.work
        for batch in work.table.unfinished():
            if batch.input_file_id == file.id:
                message = f"the file is the input of {batch.id}, which has not ended; cancel that first"
                raise RequestFault(400, "file_in_use", message, param="file_id")
        await work.files.remove(file)  # gone for others at once: no batch can be made of it meanwhile

    async def content(self, request: OwnRequest) -> None:
        """GET /v1/files/{id}/content"""
        path = self._door.work.files.path(self._file(request).id)
        request.begin_stream(b"application/octet-stream")
        try:
            await self._send(request, path)
        except TimeoutError:
            request.abort("client_stalled")
        except OSError:
            request.abort("file_cut")  # deleted meanwhile: a part must not look like the whole
        except BaseException:
            request.abort("file_cut")
            raise

    async def _send(self, request: OwnRequest, path: Path) -> None:
        may_write = asyncio.Event()
        may_write.set()
        request.on_pause, request.on_resume = may_write.clear, may_write.set
        if request.write_paused:
            may_write.clear()
        offset = 0
        while piece := await asyncio.to_thread(_read_piece, path, offset):
            request.send(piece)
            offset += len(piece)
            async with asyncio.timeout(self._door.gateway.timeouts.idle_seconds):
                await may_write.wait()
        request.end()

    def _file(self, request: OwnRequest) -> StoredFile:
        file = self._door.work.files.find(request.key_name, request.params["id"])
        if file is None:
            raise _not_found()
        return file


def _read_piece(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:  # anew for each: no file stays open for as long as a client likes
        file.seek(offset)
        return file.read(PIECE_BYTES)


def _not_found() -> RequestFault:
    return RequestFault(404, "file_not_found", "there is no such file", param="file_id")
