"""`{{node}}` and `{{input.name}}` in the texts of a request: which are there, and what the request is with them filled.

A request is kept as JSON bytes cut at its references, so that filling it is a join. Outputs and inputs are text, not
templates: what looks like a placeholder in them stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.errors import RequestFault
from proxy.http.request import body_too_large

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}"
"""Names of nodes and inputs: none of their characters is escaped in JSON."""
_PLACEHOLDER = re.compile(rb"\{\{ ?(" + NAME.encode() + rb") ?\}\}")
INPUT = "input."


class Template(NamedTuple):
    """A request with references. `pieces`: JSON text, and between two pieces the output of a node of `references`."""

    pieces: tuple[bytes, ...]
    references: tuple[str, ...]
    size_bytes: int
    """Of the request without outputs."""

    def fill(self, outputs: Mapping[str, str], bytes_max: int | None = None) -> bytes:
        """The request's JSON. KeyError if an output is missing; RequestFault 413 if it is larger than `bytes_max`, and
        then it has not been made: an output may be long, and quoted a thousand times."""
        texts = {name: in_json_string(outputs[name]) for name in self.references}
        if bytes_max is not None and self.size_bytes + sum([len(texts[name]) for name in self.references]) > bytes_max:
            raise body_too_large(bytes_max)
        parts = [self.pieces[0]]
        for name, piece in zip(self.references, self.pieces[1:], strict=True):
            parts += (texts[name], piece)
        return b"".join(parts)


Request = bytes | Template
"""A request without references is its JSON text."""


def size_of(request: Request) -> int:
    """Of the request without outputs, in bytes."""
    return len(request) if isinstance(request, bytes) else request.size_bytes


def in_json_string(text: str) -> bytes:
    """The text as it stands between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]


def copied(data: bytes) -> bytes:
    """The same bytes in memory of their own length: orjson writes into a buffer and hands over 4 KiB with however short
    a text, and cutting or joining what is one piece already gives that piece."""
    return b"".join((data, b""))


def template(
    request: dict[str, Any],
    data: bytes,
    inputs: Mapping[str, bytes],
    known: Container[str],
    place: str,
    bytes_max: int | None = None,
) -> Request:
    """Cut a request, whose JSON text is `data`, at its references to `known` nodes. `place`: its path. `inputs`: by
    name, as they stand in JSON's strings.

    RequestFault 400, with the path of the text, for a name that is neither a node nor an input; 413 for a request that
    is larger than `bytes_max` with its inputs in it.
    """
    parts = _PLACEHOLDER.split(data)  # JSON text, a name, JSON text, …
    if len(parts) == 1:
        return data
    names = [name.decode("ascii") for name in parts[1::2]]
    if all(map(known.__contains__, names)):
        return Template(tuple(parts[::2]), tuple(names), sum(map(len, parts[::2])))
    pieces: list[bytes] = []
    references: list[str] = []
    held: list[bytes] = [parts[0]]
    size = len(data)
    for name, piece in zip(names, parts[2::2], strict=True):
        if name in known:
            pieces.append(b"".join(held))
            references.append(name)
            held = [piece]
            continue
        if not name.startswith(INPUT):
            raise _unknown(request, name, place, "there is no such node")
        value = inputs.get(name.removeprefix(INPUT))
        if value is None:
            raise _unknown(request, name, place, "there is no such member of `inputs`")
        held += (value, piece)
        size += len(value)
        if bytes_max is not None and size > bytes_max:  # before it is put together
            message = f"{place} with its inputs has over {bytes_max} bytes (limits.body_bytes)"
            raise RequestFault(413, "workflow_too_large", message, param=place)
    pieces.append(b"".join(held))
    if not references:
        return pieces[0]
    return Template(tuple(pieces), tuple(references), sum(map(len, pieces)))


def _unknown(request: dict[str, Any], name: str, place: str, why: str) -> RequestFault:
    path = next((path for path, text in _texts(request, place) if _names(text, name)), place)
    message = (
        f"{path} has the placeholder {{{{{name}}}}}, but {why}; where double braces are meant as they stand, give the "
        'node `"placeholders": false`, or the text in `inputs`'
    )
    return RequestFault(400, "unknown_placeholder", message, param=path)


def _names(text: str, name: str) -> bool:
    wanted = name.encode()
    return any(match[1] == wanted for match in _PLACEHOLDER.finditer(text.encode("utf-8", "replace")))


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a request with its path; without recursion, since depth is the client's."""
    todo = [(place, value)]
    while todo:
        path, item = todo.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            todo += [(f"{path}.{name}", below) for name, below in reversed(item.items())]
        elif isinstance(item, list):
            todo += [(f"{path}[{at}]", below) for at, below in reversed(list(enumerate(item)))]
