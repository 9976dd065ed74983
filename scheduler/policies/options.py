"""What can be set of a policy? Each option's kind, default, bounds and meaning, and what is wrong with given values."""

from __future__ import annotations

from difflib import get_close_matches
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = bool | int | float | str


class Option(NamedTuple):
    """An option. Its kind is its default's: true or false, a whole number, a number, or text, one of `choices`.

    `least` and `most` are allowed themselves, `above` and `below` are not.
    """

    default: Value
    meaning: str
    """With the unit, as it stands in the documentation."""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def range_words(self) -> str:
        """Which values it takes."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return " or ".join(f'"{choice}"' for choice in self.choices) or "text"
        words = "a whole number" if isinstance(self.default, int) else "a number"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("from", self.least), ("above", self.above), ("up to", self.most), ("below", self.below),
            )
            if bound is not None
        ]  # fmt: skip
        if self.least is not None and self.most is None and self.below is None:
            bounds.append("on")
        return " ".join([words, *bounds])

    def takes(self, value: object) -> bool:
        """Whether this is one of its values."""
        default = self.default
        if isinstance(default, bool) or isinstance(value, bool):
            return isinstance(default, bool) and isinstance(value, bool)
        if isinstance(default, str):
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if not isinstance(value, int if isinstance(default, int) else int | float):
            return False
        assert isinstance(value, int | float)
        return (
            isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def problems(owner: str, options: Mapping[str, Option], given: Mapping[str, object]) -> list[tuple[str, str]]:
    """(option, what is wrong with it and the way out) for each bad one. `owner`: the policy's name."""
    found = []
    for name, value in given.items():
        option = options.get(name)
        if option is None:
            near = get_close_matches(name, ["name", *options], n=1)
            takes = ", ".join(sorted(options)) or "none"
            hint = f'; did you mean "{near[0]}"?' if near else f"; the options of {owner} are: {takes}"
            found.append((name, f"unknown option{hint}"))
        elif not option.takes(value):
            shown = repr(value)
            found.append(
                (name, f"must be {option.range_words()}, not {shown if len(shown) <= 60 else shown[:60] + '…'}")
            )
    return found


def completed(options: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, Any]:
    """The values of all options: those given, which must be right, and the defaults of the others. Numbers are floats
    where the default is one."""
    values: dict[str, Any] = {name: option.default for name, option in options.items()}
    for name, value in given.items():
        values[name] = float(value) if isinstance(values[name], float) else value  # type: ignore[arg-type]
    return values
