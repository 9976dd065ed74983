"""Prompts' prose: the same from the same seed, about as long as asked for."""

from __future__ import annotations

import pytest

from backends.twin.server.tokenizer import tokenizer
from workloads.text import prose, salt_of


def test_the_same_seed_tells_the_same_tale() -> None:
    assert prose("a", 200) == prose("a", 200)
    assert prose("a", 200) != prose("b", 200)


def test_a_shorter_tale_is_the_beginning_of_a_longer() -> None:
    assert prose("a", 900).startswith(prose("a", 300))


@pytest.mark.parametrize("tokens", [25, 512, 5107])
def test_it_is_about_as_long_as_asked_for(tokens: int) -> None:
    assert len(tokenizer(128_256).encode(prose("a", tokens))) == pytest.approx(tokens, rel=0.15)


def test_there_is_always_something_to_say() -> None:
    assert prose("a", 0)


def test_salts_differ_and_are_equally_long() -> None:
    salts = {salt_of(f"seed {number}") for number in range(200)}
    assert len(salts) == 200
    assert len({len(tokenizer(128_256).encode(f"{salt}\n\nA tale.")) for salt in salts}) == 1
