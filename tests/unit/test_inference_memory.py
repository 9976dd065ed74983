"""What is kept is bounded, counted, fair, one key's own, and the same each time."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.workflow.inference import ContentInference, Placement, Segment
from scheduler.workflow.inference.content import BYTES_MIN
from scheduler.workflow.inference.memory import KEY_BYTES, Memory, Text

MIB = 1 << 20


def memory_of(inference: ContentInference) -> Memory:
    return inference._memory


def validate(inference: ContentInference) -> None:
    """Every table agrees with every other, and with what is counted."""
    memory = memory_of(inference)
    assert set(memory.calls) == {call_id for key in memory.keys.values() for call_id in key.calls}
    total = memory.sieve.bytes
    for name, key in memory.keys.items():
        assert key.name == name and key.calls
        assert all(memory.calls[call_id] is call and call.key is key for call_id, call in key.calls.items())
        calls = list(key.calls.values())
        assert all(owner in calls for table in (key.messages, key.prefixes) for owner in table.values())
        assert sum(len(call.messages) for call in calls) == len(key.messages)
        assert sum(len(call.prefixes) for call in calls) == len(key.prefixes)
        assert all(call in calls for same in key.lists.values() for call in same)
        assert all(text.said and set(text.said) <= set(calls) for text in key.texts.values())
        indexed = [
            text for owners in key.windows.values() for text in ([owners] if isinstance(owners, Text) else owners)
        ]
        assert all(key.texts[text.digest] is text for text in indexed)
        assert key in memory._by_size[key.bytes.bit_length()]
        total += key.bytes
    assert memory.bytes == total
    assert sum(len(keys) for keys in memory._by_size.values()) == len(memory.keys)


class Asked(NamedTuple):
    """One call of a made-up traffic."""

    key: str
    segments: tuple[Segment, ...]
    answer: str | None


def play(inference: ContentInference, traffic: Iterable[tuple[int, Asked]]) -> dict[int, Placement]:
    """What becomes of each call, by its number."""
    placed = {}
    for number, (key, segments, answer) in traffic:
        placed[number] = inference.arrived(str(number), key, "m", segments, float(number))
        if answer is None:
            inference.forget(str(number))
        else:
            inference.answered(str(number), answer, float(number))
    return placed


POOL = [random.Random(number).randbytes(60).hex() for number in range(6)] + ["yes", ""]
TEXT = st.lists(st.sampled_from(POOL), max_size=3).map(" ".join)
MESSAGES = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", ""]), TEXT), max_size=4).map(tuple)
ASKED = st.builds(Asked, st.sampled_from("abc"), MESSAGES, st.none() | st.sampled_from(POOL))


@given(st.lists(ASKED, max_size=30))
def test_no_key_learns_of_another(traffic: list[Asked]) -> None:
    """Each key's calls are placed as if there were no others, so no edge can join two keys."""
    inference = ContentInference()
    numbered = list(enumerate(traffic))
    placed = play(inference, numbered)
    validate(inference)
    for key in "abc":
        alone = play(ContentInference(), [one for one in numbered if one[1].key == key])
        assert alone == {number: placed[number] for number in alone}
        edges = {number: [one.turn_of, *(name for name, _ in one.data_from)] for number, one in alone.items()}
        for number, origins in edges.items():
            assert all(int(origin) < number and traffic[int(origin)].key == key for origin in origins if origin)


@given(st.lists(ASKED, max_size=40))
def test_when_all_is_forgotten_nothing_is_left(traffic: list[Asked]) -> None:
    inference = ContentInference()
    empty = inference.bytes_used
    play(inference, enumerate(traffic))
    for number in range(len(traffic)):
        inference.forget(str(number))
    validate(inference)
    assert not memory_of(inference).keys and not memory_of(inference).sieve.in_use
    assert inference.bytes_used == empty


def flood(rng: random.Random, count: int, keys: int) -> Iterable[tuple[int, Asked]]:
    """New texts each time."""
    for number in range(count):
        text, answer = rng.randbytes(1500).hex(), rng.randbytes(300).hex()
        yield number, Asked(f"key-{number % keys}", (("system", "Be."), ("user", text)), answer)


@pytest.mark.parametrize("keys", [1, 7, 500])
def test_a_flood_stays_within_the_bound(keys: int) -> None:
    inference = ContentInference(2 * MIB)
    for number, asked in flood(random.Random(1), 3000, keys):
        play(inference, [(number, asked)])
        assert inference.bytes_used <= 2 * MIB
    validate(inference)
    assert inference.counters.evicted > 1000
    assert inference.counters.calls == inference.counters.evicted + len(memory_of(inference).calls)


@pytest.mark.parametrize("keys", [1, 400])
def test_what_is_counted_is_what_is_taken(keys: int) -> None:
    traffic = list(flood(random.Random(2), 2500, keys))
    gc.collect()
    tracemalloc.start()
    try:
        inference = ContentInference(16 * MIB)
        play(inference, traffic)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.75 * inference.bytes_used < taken < 1.02 * inference.bytes_used


def test_who_keeps_the_most_gives_up_its_oldest() -> None:
    inference = ContentInference(2 * MIB)
    output = random.Random(3).randbytes(100).hex()
    play(inference, [(-1, Asked("small", (("user", "Hi"),), output))])
    play(inference, flood(random.Random(4), 3000, 1))
    placed = inference.arrived("last", "small", "m", [("user", f"Judge {output}")], 3000.0)
    assert [origin for origin, _ in placed.data_from] == ["-1"]
    assert "0" not in memory_of(inference).calls and "2999" in memory_of(inference).calls


def test_what_is_old_is_forgotten() -> None:
    inference = ContentInference(keep_seconds=100.0)
    for number in range(50):
        inference.arrived(str(number), f"k{number % 3}", "m", [("user", f"question {number}")], float(number))
    inference.arrived("late", "k", "m", [("user", "Hi")], 125.0)
    inference.arrived("later", "k", "m", [("user", "Hi")], 126.0)
    assert inference.counters.expired == 8
    for number in range(20):
        inference.arrived(f"end-{number}", "k", "m", [], 1000.0)
    assert len(memory_of(inference).calls) == 20
    validate(inference)


def test_a_smaller_bound_holds_from_the_next_call_on() -> None:
    inference = ContentInference(4 * MIB)
    play(inference, flood(random.Random(5), 1500, 2))
    inference.bytes_max = 2 * MIB
    inference.arrived("next", "k", "m", [], 2000.0)
    assert inference.bytes_used <= 2 * MIB
    inference.bytes_max = 0
    assert inference.bytes_max == BYTES_MIN


def test_a_bound_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="1048576 bytes at least"):
        ContentInference(1000)


def test_an_answer_in_many_parts_is_kept_in_part() -> None:
    inference = ContentInference()
    inference.arrived("a", "k", "m", [("user", "Hi")], 0.0)
    inference.answered("a", [random.Random(number).randbytes(60).hex() for number in range(100)], 0.0)
    assert inference.bytes_used < memory_of(inference).max_bytes // 16 + KEY_BYTES + 64 * 1024
    validate(inference)


SCRIPT = """
import random
from scheduler.workflow.inference import ContentInference
rng, inference = random.Random(6), ContentInference(1 << 20)
pool = [rng.randbytes(80).hex() for _ in range(20)]
for number in range(600):
    said = [(rng.choice(["system", "user", "assistant"]), " ".join(rng.choices(pool, k=3))) for _ in range(3)]
    print(inference.arrived(str(number), f"k{number % 9}", "m", said, number))
    inference.answered(str(number), rng.choice(pool), number)
print(inference.counters, inference.bytes_used)
"""


def test_it_is_the_same_in_each_process() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert b"evicted=0" not in said[0]


@settings(max_examples=30)
@given(st.lists(ASKED, min_size=1, max_size=60), st.integers(0, 2**32))
def test_forgetting_in_any_order_keeps_the_tables_whole(traffic: list[Asked], seed: int) -> None:
    inference, rng = ContentInference(), random.Random(seed)
    for number, asked in enumerate(traffic):
        play(inference, [(number, asked)])
        if rng.random() < 0.5:
            inference.forget(str(rng.randint(0, number)))
        validate(inference)
