"""On which line of a TOML file does a key stand? tomllib does not say; an error without its line is half an error."""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
      (?P<newline>\r?\n)
    | [ \t]+ | \#[^\n]*
    | (?P<string> \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<mark>[\[\]{},=.])
    | (?P<bare>[^\s\[\]{},=."'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)

Place = tuple[str | int, ...]


class _Token(NamedTuple):
    text: str
    line: int


_END = _Token("", 0)


class Lines:
    """Made from a text that tomllib has taken; `of` finds the line of a place, or of the nearest table around it."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        self._counts: dict[Place, int] = {}
        self._tokens: list[_Token] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup is not None:
                self._tokens.append(_Token("\n" if match.lastgroup == "newline" else match[0], line))
            line += match[0].count("\n")
        self._tokens.reverse()  # the next one is the last
        self._document()

    def of(self, place: Place) -> int | None:
        """The line, counted from 1; None if neither it nor a table around it is in the file."""
        while place:
            if (line := self._lines.get(place)) is not None:
                return line
            place = place[:-1]
        return None

    def _next(self) -> _Token:
        return self._tokens.pop() if self._tokens else _END

    def _peek(self) -> str:
        return self._tokens[-1].text if self._tokens else ""

    def _document(self) -> None:
        table: Place = ()
        while self._tokens:
            if self._peek() == "\n":
                self._next()
            elif self._peek() == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _header(self) -> Place:
        """`[a.b]` or `[[a.b]]`: the place of the table that begins."""
        line = self._next().line
        is_array = self._peek() == "["
        if is_array:
            self._next()
        *parents, name = self._key()
        place: Place = ()
        for part in parents:
            place = self._newest((*place, part))
            self._lines.setdefault(place, line)
        place = (*place, name)
        if is_array:
            self._lines.setdefault(place, line)
            self._counts[place] = self._counts.get(place, -1) + 1
        place = self._newest(place)
        self._lines[place] = line
        self._skip_line()
        return place

    def _newest(self, place: Place) -> Place:
        """In an array of tables, a header means the one begun last."""
        return (*place, self._counts[place]) if place in self._counts else place

    def _assignment(self, table: Place) -> None:
        """`a.b = value`, in a table or between braces."""
        line = self._tokens[-1].line
        place = table
        for part in self._key():
            place = (*place, part)
            self._lines.setdefault(place, line)
        self._value(place)

    def _key(self) -> list[str]:
        """A dotted key and the mark behind it."""
        parts = []
        while (text := self._next().text) not in ("=", "]", "\n", ""):
            if text != ".":
                parts.append(text[1:-1] if text[0] in "\"'" else text)
        return parts or [""]

    def _value(self, place: Place) -> None:
        if self._peek() == "[":
            self._next()
            index = 0
            while self._peek() not in ("]", ""):
                if self._peek() in ("\n", ","):
                    self._next()
                    continue
                self._lines[*place, index] = self._tokens[-1].line
                self._value((*place, index))
                index += 1
            self._next()
        elif self._peek() == "{":
            self._next()
            while self._peek() not in ("}", ""):
                if self._peek() in ("\n", ","):
                    self._next()
                    continue
                self._assignment(place)
            self._next()
        else:
            while self._peek() not in ("\n", ",", "]", "}", ""):
                self._next()

    def _skip_line(self) -> None:
        while self._peek() not in ("\n", ""):
            self._next()
