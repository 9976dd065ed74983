"""What may stand in the requests of the Files and Batch API? RequestFault names the parameter that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from proxy.batches import multipart
from proxy.batches.lines import ENDPOINTS
from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.own.request import OwnRequest

EXPIRY_SECONDS = (3_600, 2_592_000)
METADATA_MAX = 16
METADATA_KEY_LENGTH_MAX = 64
METADATA_VALUE_LENGTH_MAX = 512
FILENAME_LENGTH_MAX = 255
_BATCH_MEMBERS = frozenset(("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"))
_FILE_FIELDS = frozenset(("file", "purpose", "expires_after[anchor]", "expires_after[seconds]"))


class Listed(Protocol):
    """What a list shows."""

    @property
    def id(self) -> str:
        """By which `after` finds it."""

    def shown(self) -> dict[str, Any]:
        """As the API says it."""


class Upload(NamedTuple):
    """A file as it came."""

    filename: str
    purpose: str
    data: memoryview
    keep_seconds: float | None


class Order(NamedTuple):
    """A batch as it was asked for."""

    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None
    output_seconds: float | None


def read_upload(body: bytes, content_type: str | None, file_bytes_max: int) -> Upload:
    """The form of POST /v1/files."""
    parts = multipart.parse(body, content_type)
    for name in parts:
        if name not in _FILE_FIELDS:
            raise _wrong(name[:64], f"there is no parameter {name[:64]!r} here")
    for name in ("file", "purpose"):
        if name not in parts:
            raise _wrong(name, f"{name} is missing")
    if (purpose := parts["purpose"].text()) != "batch":
        raise _wrong("purpose", f'purpose must be "batch", not {purpose[:64]!r}: no other file is of use here')
    file = parts["file"]
    if file.filename is None:
        raise _wrong("file", "file must be a file, with a filename")
    if len(file.data) > file_bytes_max:
        message = f"the file is over {file_bytes_max} bytes (batches.file_bytes)"
        raise RequestFault(413, "file_too_large", message, param="file")
    if not file.data:
        raise _wrong("file", "the file is empty")
    keep_seconds = None
    given = {
        name: parts[f"expires_after[{name}]"] for name in ("anchor", "seconds") if f"expires_after[{name}]" in parts
    }
    if given:
        values: dict[str, Any] = {name: part.text() for name, part in given.items()}
        if values.get("seconds", "").isascii() and values.get("seconds", "").isdigit():
            values["seconds"] = int(values["seconds"][:12])
        keep_seconds = _expiry(values, "expires_after")
    return Upload(file.filename[:FILENAME_LENGTH_MAX], purpose, file.data, keep_seconds)


def read_order(value: dict[str, Any]) -> Order:
    """The body of POST /v1/batches."""
    for name in value:
        if name not in _BATCH_MEMBERS:
            raise _wrong(name[:64], f"there is no parameter {name[:64]!r} here")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in value:
            raise _wrong(name, f"{name} is missing")
    if not isinstance(value["input_file_id"], str):
        raise _wrong("input_file_id", "input_file_id must be a string")
    if value["endpoint"] not in ENDPOINTS:
        raise _wrong("endpoint", f"endpoint must be one of {', '.join(ENDPOINTS)}")
    if value["completion_window"] != "24h":
        raise _wrong("completion_window", 'completion_window must be "24h"')
    expiry = value.get("output_expires_after")
    output_seconds = None if expiry is None else _expiry(expiry, "output_expires_after")
    return Order(value["input_file_id"], value["endpoint"], _metadata(value.get("metadata")), output_seconds)


def read_page(request: OwnRequest, items: Sequence[Listed], limit_default: int, limit_max: int) -> dict[str, Any]:
    """The part of a list that a request asks for with `after`, `limit` and `order`. `items`: oldest first."""
    query = request.query()
    limit = query.get("limit", str(limit_default))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= limit_max):
        raise _wrong("limit", f"limit must be a number from 1 to {limit_max}")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _wrong("order", "order must be asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if after := query.get("after"):
        start = next((index + 1 for index, item in enumerate(ordered) if item.id == after), -1)
        if start < 0:
            raise RequestFault(404, "not_found", "the list has no such id", param="after")
    page = ordered[start : start + int(limit)]
    return {
        "object": "list",
        "data": [item.shown() for item in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": start + len(page) < len(ordered),
    }


def _expiry(value: Any, param: str) -> float:
    low, high = EXPIRY_SECONDS
    if not isinstance(value, dict) or value.get("anchor") != "created_at":
        raise _wrong(param, f'{param} must have the anchor "created_at"')
    seconds = value.get("seconds")
    if type(seconds) is not int or not low <= seconds <= high:
        raise _wrong(param, f"{param} must have seconds from {low} to {high}")
    return float(seconds)


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > METADATA_MAX:
        raise _wrong("metadata", f"metadata must be an object of at most {METADATA_MAX} members")
    for key, text in value.items():
        if len(key) > METADATA_KEY_LENGTH_MAX or not isinstance(text, str) or len(text) > METADATA_VALUE_LENGTH_MAX:
            message = (
                f"metadata's names have at most {METADATA_KEY_LENGTH_MAX} characters, its values are strings of at most"
                f" {METADATA_VALUE_LENGTH_MAX}"
            )
            raise _wrong("metadata", message)
    return value


def _wrong(param: str, message: str) -> RequestFault:
    return RequestFault(400, "invalid_parameter", message, param=param)
