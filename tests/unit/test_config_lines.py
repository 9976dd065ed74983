"""Lines of keys in a TOML file: each way in which a key can be written."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config_lines import Lines


class TestLines:
    TEXT = (
        'a = 1\n"b c".d = """\nx = 3\n[no]\n"""""\nl = [1, 2,\n  3, {x = 1, y.z = [\n   4]}]\n[t] # c [u]\n'
        'u = \'a]"#\' # "\n[[e]]\nn = 1979-05-27 07:32:00\n[e.s]\nq = -3.14e5\n[[e]]\nn = { a = "}", b = 2 }\n'
        "[[e.k]]\nz=1\n[[e.k]]\nz=2\n[p.q]\n[p]\nr = '''\n'''\n"
    )

    @pytest.mark.parametrize(
        ("place", "line"),
        [
            (("a",), 1),
            (("b c", "d"), 2),
            (("no",), None),
            (("x",), None),
            (("l", 1), 6),
            (("l", 3, "y", "z", 0), 8),
            (("t", "u"), 10),
            (("e", 0, "n"), 12),
            (("e", 0, "s", "q"), 14),
            (("e", 1, "n", "b"), 16),
            (("e", 1, "k", 0, "z"), 18),
            (("e", 1, "k", 1, "z"), 20),
            (("e", 1, "k", 1, "missing", "deeper"), 19),
            (("p",), 22),
            (("p", "q"), 21),
            (("p", "r"), 23),
        ],
    )
    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_each_way_to_write_a_key(self, place: tuple[str | int, ...], line: int | None, newline: str) -> None:
        assert tomllib.loads(self.TEXT)
        assert Lines(self.TEXT.replace("\n", newline)).of(place) == line

    scalars = st.sampled_from(["1", "-3.5", "true", '"a"', "'b]'", '"}#"', '"""\nx\n"""', "'''\n[z]\n'''", "07:32:00"])
    names = st.sampled_from(["a", "b", "c-d", '"e f"', "'g.h'"])

    @given(st.lists(st.tuples(names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3))), max_size=8))
    def test_every_key_is_found_where_it_was_written(self, entries: list[tuple[str, Any]]) -> None:
        """Arrays of tables whose entries hold values of every shape, one key a table; marked by their own order."""
        text, expected = "", {}
        for index, (name, value) in enumerate(entries):
            text += "# [[t]]\n[[t]]\n"
            place = ("t", index, name.strip("\"'"))
            expected[place] = text.count("\n") + 1
            text += f"{name} = {self.written(value)} # {name} = 1\n"
        tomllib.loads(text)
        lines = Lines(text)
        assert {place: lines.of(place) for place in expected} == expected

    def written(self, value: Any) -> str:
        """As TOML, arrays over several lines."""
        return (
            value
            if isinstance(value, str)
            else "[\n" + "".join(f" {self.written(item)}, # ]\n" for item in value) + "]"
        )
