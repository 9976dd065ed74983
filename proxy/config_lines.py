"""On which line of a TOML file does a key stand? tomllib does not say, and an error without its line is half an error."""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=(.*)$""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_TRIPLE = ('"""', "'''")


class Lines:
    """Made from the text; `of` finds the line of a place, or of the nearest table around it."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str | int, ...], int] = {}
        self._table: tuple[str | int, ...] = ()
        self._counts: dict[tuple[str | int, ...], int] = {}
        quote, depth = "", 0
        for number, line in enumerate(text.splitlines(), 1):
            if quote:  # inside a string of several lines
                if quote in line:
                    quote = ""
                continue
            if depth == 0:
                line = self._take(line, number)
            quote = next((mark for mark in _TRIPLE if line.count(mark) % 2), "")
            if not quote:
                bare = _STRING.sub("", line).partition("#")[0]
                depth = max(0, depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}"))

    def _take(self, line: str, number: int) -> str:
        """Note what this line defines; returns the value that stands on it."""
        if (header := _HEADER.match(line)) is not None:
            path = _parts(header[2])
            if header[1] == "[[":
                index = self._counts[path] = self._counts.get(path, -1) + 1
                self._lines.setdefault(path, number)
                path = (*path, index)
            self._table = path
            self._lines[path] = number
            return ""
        if (key := _KEY.match(line)) is None:
            return line
        path = self._table
        for part in _parts(key[1]):
            path = (*path, part)
            self._lines.setdefault(path, number)
        for inner in re.finditer(r"[{,]\s*([A-Za-z0-9_-]+)\s*=", _STRING.sub('""', key[2])):
            self._lines.setdefault((*path, inner[1]), number)  # an inline table
        return key[2]

    def of(self, place: tuple[str | int, ...]) -> int | None:
        """The line, counted from 1; None if neither it nor a table around it is in the file."""
        while place:
            if (line := self._lines.get(place)) is not None:
                return line
            place = place[:-1]
        return None


def _parts(dotted: str) -> tuple[str | int, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))
