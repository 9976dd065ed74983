"""Whose next turn is a prompt? Lists that go on, and all that only looks so."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.workflow.inference import PREFIX_BYTES, ContentInference, Placement, Segment
from scheduler.workflow.inference.placement import LIKELY, POSSIBLE, SURE, WEAK
from scheduler.workflow.inference.reading import Prompt

SYSTEM = ("system", "You are careful. " * 20)


class Talk:
    """Calls of one key, answered at once unless `answer` is None."""

    def __init__(self) -> None:
        self.inference = ContentInference()
        self.calls = 0

    def say(
        self, *messages: Segment, answer: str | tuple[str, ...] | None = "Yes.", call_id: str = "", key: str = "k"
    ) -> Placement:
        self.calls += 1
        call_id = call_id or f"call-{self.calls}"
        placement = self.inference.arrived(call_id, key, "m", messages, float(self.calls))
        if answer is not None:
            self.inference.answered(call_id, answer, float(self.calls))
        return placement


def user(text: str) -> Segment:
    return "user", text


def assistant(text: str) -> Segment:
    return "assistant", text


def turn(placement: Placement) -> tuple[str | None, float]:
    return placement.turn_of, placement.turn_confidence


def words(about: str, count: int = 40) -> str:
    """Distinct sentences, long enough to be found anywhere."""
    return " ".join(f"{about} has its {number}th property." for number in range(count))


def test_a_list_that_goes_on_with_the_answer_is_the_next_turn() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer="Hello.", call_id="a")
    second = talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"), answer="So.", call_id="b")
    assert turn(second) == ("a", SURE)
    third = talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"), assistant("So."), user("Go on"))
    assert turn(third) == ("b", SURE)  # the longest list, not the first
    assert second.data_from == third.data_from == ()


def test_white_space_around_messages_is_no_matter() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi\n"), answer="\n Hello. ", call_id="a")
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"))) == ("a", SURE)


def test_a_system_prompt_alone_begins_nothing() -> None:
    talk = Talk()
    talk.say(SYSTEM, call_id="a")
    talk.say(SYSTEM, ("developer", "More."), call_id="b")
    assert talk.say(SYSTEM, assistant("Yes."), user("Hi")).turn_of is None
    assert talk.say(SYSTEM, ("developer", "More."), assistant("Yes."), user("Hi")).turn_of is None
    assert talk.say(SYSTEM, user("other")).turn_of is None


def test_the_same_list_again_is_a_retry_and_no_turn() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"))
    assert talk.say(SYSTEM, user("Hi")) == talk.say(SYSTEM, user("Hi"))
    assert talk.inference.counters.turns == 0


def test_branches_are_turns_of_the_same_call() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer="Hello.", call_id="a")
    for question in ("left?", "right?"):
        assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello."), user(question))) == ("a", SURE)


def test_of_several_choices_each_can_be_gone_on_from() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer=("Hello.", "Good day."), call_id="a")
    for answer in ("Good day.", "Hello."):
        assert turn(talk.say(SYSTEM, user("Hi"), assistant(answer), user("And?"))) == ("a", SURE)


def test_of_a_regenerated_answer_the_one_that_is_sent_back_tells() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer="Hello.", call_id="a")
    talk.say(SYSTEM, user("Hi"), answer="Good day.", call_id="b")
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"))) == ("a", SURE)
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Good day."), user("And?"))) == ("b", SURE)
    # Edited, it could be either's.
    assert talk.say(SYSTEM, user("Hi"), assistant("Good night."), user("And?")).turn_of is None


def test_two_who_began_alike_are_not_told_apart_unless_one_was_first() -> None:
    talk = Talk()
    begin = (SYSTEM, user("Hi"))
    talk.say(*begin, answer="Hello.", call_id="a")
    talk.say(*begin, answer="Hello.", call_id="b")
    assert talk.say(*begin, assistant("Hello."), user("I"), answer=None).turn_of is None
    assert talk.inference.counters.ambiguous == 1
    again = Talk()
    again.say(*begin, answer="Hello.", call_id="a")
    again.say(*begin, assistant("Hello."), user("I"), call_id="a2")
    again.say(*begin, answer="Hello.", call_id="b")  # a run after the other's
    assert turn(again.say(*begin, assistant("Hello."), user("you"), answer=None)) == ("b", POSSIBLE)


def test_an_answer_that_the_client_edited() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer="Hello.", call_id="a")
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello!!"), user("And?"))) == ("a", POSSIBLE)
    assert turn(talk.say(SYSTEM, user("Hi"), user("Please."))) == ("a", WEAK)


def test_nothing_goes_on_from_a_call_without_an_answer() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer=None, call_id="a")
    assert talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"), answer=None).turn_of is None
    talk.inference.forget("a")
    talk.inference.answered("a", "Hello.", 3.0)  # it is forgotten
    assert talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?")).turn_of is None


def test_an_answer_whose_text_is_not_known_counts_as_edited() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer=(), call_id="a")
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"))) == ("a", POSSIBLE)


def test_thinking_is_taken_off() -> None:
    talk = Talk()
    talk.say(SYSTEM, user("Hi"), answer="<think>\nHm.\n</think>\n\nHello.", call_id="a")
    assert turn(talk.say(SYSTEM, user("Hi"), assistant("Hello."), user("And?"))) == ("a", SURE)


def test_an_example_in_every_prompt_is_no_history() -> None:
    talk = Talk()
    example = (SYSTEM, user("2+2?"), assistant("It is 4."))
    talk.say(*example, user("3+3?"))
    talk.say(SYSTEM, user("2+2?"), answer="It is 4.", call_id="accident")
    assert talk.say(*example, user("5+5?")).turn_of is None
    assert talk.inference.counters.accidental == 1


def test_an_answer_behind_an_edited_history() -> None:
    talk = Talk()
    first, second = words("The sea"), words("The wind")
    talk.say(SYSTEM, user("Hi"), answer=first, call_id="a")
    talk.say(("system", "Now it is noon."), user("Hi"), assistant(first), user("And?"), answer=second, call_id="b")
    # The first turn is cut off and the system prompt is another: the last answer tells.
    third = talk.say(("system", "Now it is one."), assistant(first), user("And?"), assistant(second), user("So?"))
    assert turn(third) == ("b", LIKELY)
    assert third.data_from == ()


def test_a_turn_may_quote_others_anew() -> None:
    talk = Talk()
    talk.say(user("Look at the sea"), answer=words("The sea"), call_id="tool")
    talk.say(SYSTEM, user("Hi"), answer="I look.", call_id="a")
    history = (SYSTEM, user("Hi"), assistant("I look."), ("tool", words("The sea")))
    placed = talk.say(*history, answer="It is wide.", call_id="b")
    assert turn(placed) == ("a", SURE)
    assert placed.data_from == (("tool", SURE),)
    later = talk.say(*history, assistant("It is wide."), user("And?"))
    assert turn(later) == ("b", SURE)
    assert later.data_from == ()  # it stood in the turn before


def test_a_bare_text_goes_on_from_prompt_and_output() -> None:
    talk = Talk()
    output = words("The sea")
    talk.say(("", "Once upon a time"), answer=output, call_id="a")
    talk.say(("", "Something else"), call_id="b")
    placed = talk.say(("", f"Once upon a time {output}\nAnd then"), answer=words("The wind"), call_id="c")
    assert turn(placed) == ("a", SURE)
    assert placed.data_from == ()
    other = talk.say(("", f"Twice upon a time {output}\nAnd then"))
    assert other.turn_of is None
    assert other.data_from == (("a", SURE),)


def test_several_bare_texts_and_token_ids_are_no_conversation() -> None:
    talk = Talk()
    talk.say(("", "Once"), ("", "Twice"))
    assert talk.say(("", "Once"), ("", "Twice"), ("", "Thrice")).turn_of is None
    talk.say(("tokens", "A\0\0\0"))
    assert talk.say(("tokens", "A\0\0\0B\0\0\0")).turn_of is None


@pytest.mark.parametrize("segments", [(), (("user", ""),), (("", ""),), (("user", "\ud800"),)])
def test_empty_and_broken_prompts_are_placed_nowhere(segments: tuple[Segment, ...]) -> None:
    talk = Talk()
    for _ in range(2):
        placed = talk.say(*segments, answer="\ud800")
        assert placed.turn_of is None
        assert placed.data_from == ()


def test_an_id_arrives_once() -> None:
    talk = Talk()
    talk.say(user("Hi"), call_id="a")
    with pytest.raises(ValueError, match="arrived twice"):
        talk.say(user("Hi"), call_id="a")


def test_fingerprints_tell_templates_and_models() -> None:
    talk = Talk()
    one = talk.say(SYSTEM, user("Hi")).fingerprint
    assert talk.say(SYSTEM, user("other"), key="k2").fingerprint == one
    assert talk.say(("system", "Else."), user("Hi")).fingerprint != one
    assert talk.inference.arrived("x", "k", "n", [SYSTEM, user("Hi")], 0.0).fingerprint != one
    summary = [talk.say(user(f"Summarise this:\n\n{words(about)}")).fingerprint for about in ("Sea", "Wind")]
    assert summary[0] == summary[1] != one


def test_prefixes_are_equal_as_far_as_texts_are() -> None:
    talk = Talk()
    common = words("The sea", 400)
    first, second = (talk.say(user(f"{common}{end * 9000}")).prefix for end in ("a", "b"))
    assert len(first) == len(second) == 4
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, True, True, False]
    assert talk.say(user("short")).prefix == ()


CUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=4)


@given(CUTS, CUTS, st.integers(0, 12_000), st.sampled_from(["m", "n"]))
def test_prefixes_are_equal_if_and_only_if_beginnings_are(
    one: list[int], other: list[int], same: int, model: str
) -> None:
    """Beside a naive comparison: the messages up to the byte, with their roles, and the model."""

    def prompt(cuts: list[int], letter: str) -> list[Segment]:
        text = "a" * same + letter * sum(cuts)
        ends = [sum(cuts[:number]) for number in range(len(cuts) + 1)]
        return [user(text[start:end]) for start, end in pairwise(ends)]

    def beginning(prompt: list[Segment], model: str, length: int) -> tuple[object, ...] | None:
        parts: list[Segment] = []
        for role, text in prompt:
            parts.append((role, text[:length]))
            if (length := length - len(text)) <= 0:
                return model, *parts
        return None

    prompts = prompt(one, "b"), prompt(other, "c")
    prefixes = Prompt(prompts[0], "m").prefix, Prompt(prompts[1], model).prefix
    for number, length in enumerate(PREFIX_BYTES):
        begun = beginning(prompts[0], "m", length), beginning(prompts[1], model, length)
        assert [len(prefix) > number for prefix in prefixes] == [begin is not None for begin in begun]
        if None not in begun:
            assert (prefixes[0][number] == prefixes[1][number]) == (begun[0] == begun[1])


def test_a_placement_can_be_written_as_json() -> None:
    placed = Talk().say(user("x" * 70_000))
    assert json.loads(json.dumps(placed))[4] == list(placed.prefix)
