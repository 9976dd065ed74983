"""Whose outputs stand in a prompt? The quick search beside a naive one, and the rules for what is no edge."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.workflow.inference import ContentInference
from scheduler.workflow.inference.hashing import digest_of
from scheduler.workflow.inference.memory import Text
from scheduler.workflow.inference.placement import LIKELY, POSSIBLE, SURE
from scheduler.workflow.inference.quotes import SCANNED_BYTES_MAX, unescaped
from scheduler.workflow.inference.sampling import SHORTEST, STEP, WINDOW, Sieve, keys_of, sampled, window_hashes
from workloads.text import prose

NOW = 0.0


def asked(
    inference: ContentInference, call_id: str, text: str, answer: str | None = None, key: str = "k"
) -> dict[str, float]:
    """A call of one message; whose outputs it quotes."""
    placement = inference.arrived(call_id, key, "m", [("user", text)], NOW)
    assert placement.turn_of is None
    if answer is not None:
        inference.answered(call_id, answer, NOW)
    return dict(placement.data_from)


def naive(outputs: list[str], prompt: str) -> set[int]:
    """The outputs with a place in the prompt outside all others; those that two have said, and short ones, left out."""
    places: list[tuple[int, int, str]] = []
    for text in {output.strip() for output in outputs}:
        at = prompt.find(text) if len(text.encode()) >= SHORTEST else -1
        while at >= 0:
            places.append((at, at + len(text), text))
            at = prompt.find(text, at + 1)
    outer = {
        text
        for start, end, text in places
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in places)
    }
    said = [output.strip() for output in outputs]
    return {number for number, text in enumerate(said) if text in outer and said.count(text) == 1}


WORDS = st.sampled_from(["sea ", "the wind and ", "é", "😀 ", "x", "0123456789", "\n", "long words of a tale, "])
STRETCH = st.lists(WORDS, max_size=30).map("".join)
PERIODIC = st.tuples(st.text("ab", min_size=1, max_size=7), st.integers(80, 200)).map(lambda two: two[0] * two[1])
OUTPUT = STRETCH | PERIODIC | st.integers().map(lambda seed: random.Random(seed).randbytes(60).hex())


@given(st.lists(OUTPUT, min_size=1, max_size=6), st.data())
@example(["ab" * 90], None)
def test_the_search_finds_what_a_naive_one_does(outputs: list[str], data: st.DataObject | None) -> None:
    if data is None:
        prompt = f"xx{outputs[0]}yy"
    else:
        nested = data.draw(st.lists(st.tuples(STRETCH, st.sampled_from(outputs)), max_size=2))
        outputs += [f"{stretch}{output}{stretch}" for stretch, output in nested]
        pieces = data.draw(st.lists(STRETCH | st.sampled_from(outputs), max_size=8))
        prompt = f"? {''.join(pieces)}"
    inference = ContentInference(1 << 20)
    for number, output in enumerate(outputs):
        asked(inference, str(number), f"question {number}", output)
    assert {int(one) for one in asked(inference, "last", prompt)} == naive(outputs, prompt.strip())


@pytest.mark.parametrize("before", range(0, STEP * 2 + 1, 3))
@pytest.mark.parametrize("length", [SHORTEST, SHORTEST + 1, 500])
def test_an_output_is_found_wherever_it_stands(before: int, length: int) -> None:
    inference = ContentInference(1 << 20)
    output = random.Random(length).randbytes(length).hex()[:length]
    asked(inference, "a", "Hi", output)
    assert asked(inference, "b", "." * before + output) == {"a": SURE}
    assert asked(inference, "c", "." * before + output[:-1]) == {}


def test_short_outputs_are_no_evidence() -> None:
    inference = ContentInference()
    asked(inference, "a", "Is it?", "y" * (SHORTEST - 1))
    asked(inference, "b", "Is it so?", "yes")
    assert asked(inference, "c", f"The answers: {'y' * (SHORTEST - 1)}, yes") == {}


def test_the_order_is_that_of_the_prompt_and_none_stands_twice() -> None:
    inference = ContentInference()
    texts = [prose(f"output {number}", 40) for number in range(3)]
    for number, text in enumerate(texts):
        asked(inference, str(number), f"question {number}", text)
    assert list(asked(inference, "c", "\n".join([texts[2], texts[0], texts[2], texts[1]]))) == ["2", "0", "1"]


def test_what_an_output_quotes_itself_is_its_own() -> None:
    inference = ContentInference()
    inner, outer = prose("inner", 40), f"I read: {prose('inner', 40)} And I think so."
    asked(inference, "a", "Hi", inner)
    asked(inference, "b", f"Judge: {inner}", outer)
    assert asked(inference, "c", f"Revise: {outer}") == {"b": SURE}
    assert asked(inference, "d", f"Revise: {outer} given {inner}") == {"b": SURE, "a": SURE}


@pytest.mark.parametrize(
    "quoted",
    [json.dumps, lambda text: json.dumps({"result": [text]}), lambda text: json.dumps(text, ensure_ascii=False), repr,
     lambda text: repr([text, text])],
)  # fmt: skip
def test_outputs_within_json_and_printed_lists_are_found(quoted: object) -> None:
    inference = ContentInference()
    output = f'He said: "Grüße, it\'s fine 😀".\n\n{prose("output", 40)}\n\tC:\\new "folder"\n'
    asked(inference, "a", "Hi", output)
    assert callable(quoted)
    assert asked(inference, "b", f"Results: {quoted(output.strip())}") == {"a": SURE}


def test_a_part_of_an_escaped_output_is_its_own() -> None:
    inference = ContentInference()
    inner = prose("inner", 40).replace("\n", " ")
    outer = f'"I read"\n{inner}\nand so on'
    asked(inference, "a", "Hi", inner)
    asked(inference, "b", f"Judge: {inner}", outer)
    assert asked(inference, "c", f"Revise: {json.dumps(outer)}") == {"b": SURE}


@given(st.text())
def test_escapes_are_taken_off_as_json_puts_them_on(text: str) -> None:
    if "\0" not in text and not any(char < " " and char not in "\n\t\r" for char in text):
        dumped = json.dumps(text)[1:-1]
        if "\\b" not in dumped and "\\f" not in dumped and "\\ud" not in dumped:
            assert unescaped(dumped.encode()).decode() == text


def test_blocks_of_code_and_what_follows_the_thinking_are_outputs_too() -> None:
    inference = ContentInference()
    code, said = prose("code", 60), prose("said", 60)
    asked(inference, "a", "Hi", f"Here it is:\n```python\n{code}\n```\nDone.")
    asked(inference, "b", "Hello", f"<think>{prose('thought', 60)}</think>\n{said}")
    assert asked(inference, "c", f"Review {code}") == {"a": SURE}
    assert asked(inference, "d", f"Review {said}") == {"b": SURE}


# --- what is no edge ---


def test_what_was_there_before_it_was_said_is_an_accident() -> None:
    inference = ContentInference()
    example_text = prose("example", 60)
    static = f"{prose('instructions', 300)}\n{example_text}\n{prose('more', 500)}"
    asked(inference, "a", f"{static}\nQuestion 1")
    asked(inference, "b", "Give me an example", example_text)
    assert asked(inference, "c", f"{static}\nQuestion 2") == {}  # the beginning is older
    assert inference.counters.accidental == 1
    document = ("user", prose("document", 300))
    inference.arrived("d", "k", "m", [document], NOW)
    asked(inference, "e", "Write a document", document[1])
    placed = inference.arrived("f", "k", "m", [("system", "Else."), document], NOW)
    assert placed.data_from == ()  # the message is older


def test_a_prompt_that_is_sent_again_quotes_the_same() -> None:
    inference = ContentInference()
    output = prose("output", 60)
    asked(inference, "a", "Hi", output)
    for call_id in ("b", "c"):
        assert asked(inference, call_id, f"Judge: {output}") == {"a": SURE}


def test_two_who_said_the_same_are_told_apart_by_their_workflows() -> None:
    inference = ContentInference()
    plans, same = [prose(f"plan {number}", 60) for number in range(2)], prose("same", 60)
    for number, plan in enumerate(plans):
        asked(inference, f"plan-{number}", f"Plan {number}", plan)
    for number, plan in enumerate(plans):
        asked(inference, f"same-{number}", f"Do {plan}", same)
    assert asked(inference, "lost", f"Judge {same}") == {}
    assert inference.counters.ambiguous == 1
    for number, plan in enumerate(plans):
        found = asked(inference, f"judge-{number}", f"Judge {same} by {plan}")
        assert found == {f"same-{number}": LIKELY, f"plan-{number}": SURE}


def test_of_runs_one_after_the_other_the_last_is_meant() -> None:
    inference = ContentInference()
    output = prose("output", 60)
    for run in range(3):
        asked(inference, f"write-{run}", "Write", output)
        assert asked(inference, f"read-{run}", f"Read {output} {run}") == {f"write-{run}": POSSIBLE if run else SURE}


def test_documents_and_system_prompts_that_all_have_are_no_edges() -> None:
    inference = ContentInference()
    system, document = ("system", prose("system", 5000)), prose("document", 2000)
    for number in range(20):
        messages = [system, ("user", f"{document}\n\nQuestion {number}")]
        placed = inference.arrived(str(number), "k", "m", messages, NOW)
        inference.answered(str(number), prose(f"answer {number}", 100), NOW)
        assert (placed.turn_of, placed.data_from) == (None, ())


def test_phrases_that_all_outputs_share_do_not_hide_them() -> None:
    inference = ContentInference()
    phrase = prose("phrase", 200)
    for number in range(40):
        asked(inference, str(number), f"question {number}", f"{phrase} {number:>80} {phrase}")
    for number in range(40):
        assert asked(inference, f"c{number}", f"? {phrase} {number:>80} {phrase}") == {str(number): SURE}


@given(st.text("ab", min_size=1, max_size=9), st.integers(SHORTEST, 200), st.integers(0, 60), st.integers(0, 3))
def test_a_text_that_repeats_itself_is_found_at_each_place(unit: str, length: int, before: int, more: int) -> None:
    """Beside a naive search: through the samples that hit its indexed stretch, all its places and no others."""
    output = (unit * length)[:length].encode()
    text = Text(output, digest_of(output), 1)
    text.base = (length - SHORTEST) // 2
    prompt = b"c" * before + output + output[: more * 11] + b"c" * 80
    found = [start for at in range(0, len(prompt), STEP) for start in text.occurrences(prompt, at)[1]]
    assert found == sorted(set(found))
    naive = [start for start in range(len(prompt)) if prompt.startswith(output, start)]
    assert found == naive


# --- the sampling itself ---


@given(st.binary(min_size=SHORTEST + STEP, max_size=400), st.integers(0, STEP))
def test_a_sample_is_the_hash_of_its_window(data: bytes, base: int) -> None:
    samples = sampled(data).tolist()
    assert len(samples) == (len(data) - WINDOW) // STEP + 1
    for offset, hashed in enumerate(window_hashes(data, base).tolist(), base):
        if offset % STEP == 0 and offset // STEP < len(samples):
            assert samples[offset // STEP] == hashed


def test_the_sieve_forgets_what_it_was_told() -> None:
    sieve = Sieve(1 << 14)
    data, other = (random.Random(seed).randbytes(STEP * 50) for seed in (1, 2))
    for _ in range(300):
        sieve.add(window_hashes(data, STEP)[:1])
    hits, hash_of = sieve.survivors(data)
    assert hits == [1] and hash_of(1) == sampled(data).tolist()[1]
    sieve.add(window_hashes(other, 0))
    assert sieve.survivors(other)[0] == [0]
    sieve.remove(keys_of(window_hashes(other, 0)))
    assert sieve.survivors(other)[0] == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.data())
def test_the_sieve_lets_all_through_that_it_knows(seeds: list[int], data: st.DataObject) -> None:
    """In a table so small that windows share slots, and whatever was taken out before."""
    sieve = Sieve(4)
    texts = [random.Random(seed).randbytes(STEP * 50) for seed in seeds]
    for text in texts:
        sieve.add(window_hashes(text, 0))
    gone = data.draw(st.sets(st.sampled_from(range(len(texts)))))
    for number in gone:
        sieve.remove(keys_of(window_hashes(texts[number], 0)))
    for number, text in enumerate(texts):
        assert number in gone or sieve.survivors(text)[0][0] == 0
    assert sieve.in_use or len(gone) == len(texts)


def test_a_long_message_is_searched_as_far_as_is_said() -> None:
    inference = ContentInference()
    output = prose("output", 60)
    asked(inference, "a", "Hi", output)
    assert asked(inference, "b", "." * SCANNED_BYTES_MAX + output) == {}
    assert inference.counters.cut_short == 1


def test_a_prompt_made_to_be_costly_is_given_up() -> None:
    inference = ContentInference()
    for number in range(8):
        asked(inference, str(number), f"question {number}", "ab" * (50_000 + number))
    started = time.process_time()
    asked(inference, "costly", "? " + "ab" * 500_000)
    assert time.process_time() - started < 0.5
    assert inference.counters.cut_short == 1


def test_a_very_long_output_is_known_as_a_whole_message_only() -> None:
    inference = ContentInference()
    output = random.Random(1).randbytes(200_000).hex()
    asked(inference, "a", "Hi", output)
    assert asked(inference, "b", f"Judge {output}") == {}
    placed = inference.arrived("c", "k", "m", [("user", "Hi"), ("assistant", output), ("user", "Go on")], NOW)
    assert (placed.turn_of, placed.turn_confidence) == ("a", SURE)
