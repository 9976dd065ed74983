"""`{{node}}` and `{{input.name}}` in the texts of a request: which are there, and what the request is with them filled.

A request is kept as JSON bytes cut at its references, so that filling it is a join. Outputs and inputs are text, not
templates: what looks like a placeholder in them stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.errors import RequestFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}"
"""Names of nodes and inputs: none of their characters is escaped in JSON."""
_PLACEHOLDER = re.compile(rb"\{\{ ?(" + NAME.encode() + rb") ?\}\}")
INPUT = "input."


class Template(NamedTuple):
    """`pieces`: JSON text, and between two pieces the output of a node of `references`."""

    pieces: tuple[bytes, ...]
    references: tuple[str, ...]
    size_bytes: int
    """Of the request without outputs."""

    @property
    def leading(self) -> bytes:
        """What is known of the request before its first reference, with inputs filled in."""
        return self.pieces[0]

    def fill(self, outputs: Mapping[str, str]) -> bytes:
        """The request's JSON. KeyError if an output is missing."""
        if not self.references:
            return self.pieces[0]
        parts = [self.pieces[0]]
        for name, piece in zip(self.references, self.pieces[1:], strict=True):
            parts += (in_json_string(outputs[name]), piece)
        return b"".join(parts)


def in_json_string(text: str) -> bytes:
    """The text as it stands between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]


def template(
    request: dict[str, Any],
    inputs: Mapping[str, str],
    known: Callable[[str], bool],
    place: Callable[[], str],
    *,
    literal: bool,
) -> Template:
    """Cut a request at its references to nodes. `literal`: nothing in it is a placeholder. `place`: its path.

    RequestFault 400, with the path of the text, for a name that is neither a node nor an input.
    """
    data = orjson.dumps(request)
    if literal or b"{{" not in data:
        return Template((data,), (), len(data))
    pieces: list[bytes] = []
    references: list[str] = []
    held: list[bytes] = []
    end = 0
    for match in _PLACEHOLDER.finditer(data):
        name = match[1].decode("ascii")
        held.append(data[end : match.start()])
        end = match.end()
        if name.startswith(INPUT) and not known(name):
            value = inputs.get(name.removeprefix(INPUT))
            if value is None:
                raise _unknown(request, name, place(), "there is no such member of `inputs`")
            held.append(in_json_string(value))
            continue
        if not known(name):
            raise _unknown(request, name, place(), "there is no such node")
        pieces.append(b"".join(held))
        held = []
        references.append(name)
    pieces.append(b"".join([*held, data[end:]]))
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
