"""What stands in a template: constant text and placeholders."""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.errors import RequestFault

PLACEHOLDERS_MAX = 4_096
"""In one template: each becomes an object."""
_PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")


class Placeholder(NamedTuple):
    """`{{name}}`, and the character of the template where it begins."""

    name: str
    at: int


def parse(template: str) -> list[str | Placeholder]:
    """The pieces of a template in their order, none of them empty. Raises RequestFault 413 if there are too many."""
    pieces: list[str | Placeholder] = []
    end = 0
    for count, match in enumerate(_PLACEHOLDER.finditer(template)):
        if count >= PLACEHOLDERS_MAX:
            message = f"template: over {PLACEHOLDERS_MAX} placeholders"
            raise RequestFault(413, "template_too_complex", message, param="template")
        if match.start() > end:
            pieces.append(template[end : match.start()])
        pieces.append(Placeholder(match[1], match.start()))
        end = match.end()
    if end < len(template):
        pieces.append(template[end:])
    return pieces
