"""The twin's tokenizer and its answers: exact counts, the same each time, cut as vLLM cuts."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.twin.server.answers import Answer, Sampling, answer
from backends.twin.server.errors import ApiError
from backends.twin.server.forms import json_of
from backends.twin.server.tokenizer import END, SPECIAL, tokenizer

WORDS = tokenizer(128_256)
SMALL = tokenizer(1)
texts = st.text(st.characters(exclude_categories=["Cs"]))
prompts = st.lists(st.integers(3, WORDS.size - 1), min_size=1, max_size=40)


@given(texts)
def test_any_text_comes_back(text: str) -> None:
    for words in (WORDS, SMALL):
        ids = words.encode(text)
        assert words.decode(ids, special=True) == text
        assert all(0 <= each < words.size for each in ids)


@given(texts, st.integers(1, 20))
def test_a_limit_stops_the_reading_and_loses_nothing_below_it(text: str, limit: int) -> None:
    whole = WORDS.encode(text)
    some = WORDS.encode(text, limit)
    assert some == whole[: len(some)]
    assert len(some) >= min(limit, len(whole))


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        WORDS.encode("a\ud800b")


def test_every_id_is_a_piece_of_its_own() -> None:
    assert WORDS.size == 128_256
    pieces = {WORDS.piece_bytes(each) for each in range(len(SPECIAL), WORDS.size)}
    assert len(pieces) == WORDS.size - len(SPECIAL)
    assert SMALL.size == 4096


def test_special_tokens_are_one_token_in_a_text() -> None:
    ids = WORDS.encode("<|im_start|>user\nhi<|im_end|>\n")
    assert ids.count(END) == 1 and ids[0] == 1
    assert WORDS.decode(ids) == "user\nhi\n"


@given(prompts, st.integers(1, 300), st.booleans(), st.integers(0, 5))
def test_an_answer_tokenizes_to_what_it_was_charged(ids: list[int], most: int, endless: bool, index: int) -> None:
    made = answer(WORDS, ids, Sampling(max_tokens=most, ignore_eos=endless, seed=3), index)
    charged = len(made.token_ids)
    assert 1 <= charged <= most
    assert WORDS.encode(made.text) == [each for each in made.token_ids if each != END]
    if endless:
        assert (charged, made.finish_reason) == (most, "length")
    else:
        assert (made.finish_reason == "stop") == (made.token_ids[-1] == END)


@given(prompts, st.integers(1, 200), st.integers(1, 200))
def test_a_longer_limit_only_adds(ids: list[int], first: int, second: int) -> None:
    low, high = sorted((first, second))
    short, long = (answer(WORDS, ids, Sampling(max_tokens=most)) for most in (low, high))
    shown = [each for each in short.token_ids if each != END]
    assert long.token_ids[: len(shown) - 1] == shown[:-1]  # its last may be a full stop instead of a word


def test_a_prompt_and_its_answer_read_together_are_the_same_tokens() -> None:
    """So that the next turn of a conversation finds the last one's blocks in the prefix cache."""
    prompt = "<|im_start|>user\nwhat is energy?<|im_end|>\n<|im_start|>assistant\n"
    ids = WORDS.encode(prompt)
    made = answer(WORDS, ids, Sampling(max_tokens=50, ignore_eos=True))
    assert not made.text.startswith(" ")
    assert WORDS.encode(prompt + made.text + "<|im_end|>\n") == [*ids, *made.token_ids, END, WORDS.id_of("\n")]


def test_only_seed_and_index_change_an_answer_and_only_above_temperature_0() -> None:
    def text(seed: int | None, temperature: float, index: int = 0) -> str:
        return answer(WORDS, [5, 6], Sampling(max_tokens=40, seed=seed, temperature=temperature), index).text

    assert text(1, 0.7) == text(1, 0.7) != text(2, 0.7)
    assert text(1, 0.7, 1) != text(1, 0.7, 0)
    assert text(None, 0.3) == text(None, 1.0)
    assert text(1, 0.0) == text(2, 0.0)
    assert answer(WORDS, [5, 7], Sampling(max_tokens=40)).text != answer(WORDS, [5, 6], Sampling(max_tokens=40)).text


def shown_by_steps(made: Answer) -> list[str]:
    """What a client has after each token."""
    return [made.text[: made.shown(count)] for count in range(len(made.token_ids) + 1)]


@given(prompts, st.text("abcdeorst .,", min_size=1, max_size=5), st.booleans(), st.integers(0, 30))
def test_stop_strings_cut_at_the_first_token_that_completes_one(
    ids: list[int], stop: str, include: bool, least: int
) -> None:
    free = answer(WORDS, ids, Sampling(max_tokens=120, ignore_eos=True))
    sampling = Sampling(max_tokens=120, ignore_eos=True, stop=("@never@", stop), include_stop=include, min_tokens=least)
    made = answer(WORDS, ids, sampling)
    if made.finish_reason == "length":
        assert stop not in free.text[free.ends[least - 1] if least else 0 :]
        assert made.text == free.text
    else:
        assert made.stop_reason == stop
        assert len(made.token_ids) > least
        assert made.token_ids == free.token_ids[: len(made.token_ids)]
        assert made.text.endswith(stop) == include or not include
        assert free.text.startswith(made.text + ("" if include else stop))
    steps = shown_by_steps(made)
    assert steps[-1] == made.text
    assert all(later.startswith(earlier) for earlier, later in pairwise(steps))


def test_a_stream_keeps_back_what_may_become_a_stop_string() -> None:
    made = answer(WORDS, [5, 6], Sampling(max_tokens=20, ignore_eos=True, stop=("@" * 8, "#")))
    assert [made.shown(count) for count in range(1, 20)] == [max(0, end - 7) for end in made.ends[:19]]
    assert made.shown(20) == len(made.text)
    shown = answer(WORDS, [5, 6], Sampling(max_tokens=20, ignore_eos=True, stop=("@" * 8,), include_stop=True))
    assert [shown.shown(count) for count in range(1, 21)] == shown.ends


@given(prompts, st.integers(0, 40))
def test_stop_token_ids_end_an_answer_and_are_not_shown(ids: list[int], least: int) -> None:
    stops = frozenset(WORDS.encode(" the of and to a in is that it for"))
    made = answer(WORDS, ids, Sampling(max_tokens=400, ignore_eos=True, stop_token_ids=stops, min_tokens=least))
    assert made.stop_reason in stops
    assert len(made.token_ids) > least
    assert not stops & set(made.token_ids[:-1])
    assert WORDS.encode(made.text) == made.token_ids[:-1]


def test_min_tokens_puts_off_the_end() -> None:
    made = answer(WORDS, [5, 6], Sampling(max_tokens=4000, min_tokens=3000))
    assert len(made.token_ids) == 3001 and made.finish_reason == "stop"


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 40},
        "age": {"type": "integer", "minimum": 200},
        "kind": {"enum": ["a", "ü"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
        "left out": {"type": "null"},
    },
    "required": ["name", "age", "kind", "tags"],
    "$defs": {"tag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
}


@given(st.integers())
def test_json_fits_its_schema(seed: int) -> None:
    made = json.loads(json_of(SCHEMA, random.Random(seed)))
    assert list(made) == ["name", "age", "kind", "tags"]
    assert len(made["name"]) == 40 and made["age"] >= 200 and made["kind"] in {"a", "ü"}
    assert [type(each) for each in made["tags"]] == [bool, bool]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nope"}, "nope"),
        ({"$ref": "#/$defs/none"}, "#/$defs/none"),
        ({"$ref": "#"}, "nested deeper"),
        ({"type": "array", "minItems": 10**9}, "minItems"),
        ({"type": "object", "properties": 5}, "properties"),
        ({"type": "object", "required": 5}, "required"),
        ({"type": [{}]}, "Unsupported type"),
        ({"const": float("nan")}, "no JSON"),
    ],
)
def test_a_schema_that_cannot_be_met_is_refused(schema: dict[str, object], said: str) -> None:
    with pytest.raises(ApiError, match=said.replace("$", r"\$")):
        json_of(schema, random.Random(1))


def test_bounds_that_are_no_numbers_bound_nothing() -> None:
    schema = {"type": "integer", "minimum": float("inf"), "exclusiveMaximum": float("nan")}
    assert 1 <= json.loads(json_of(schema, random.Random(1))) <= 99
