"""Templates, parameters and sampling of Parrot's semantic calls: what is taken, and how the rest is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import RequestFault
from proxy.parrot.forms import OUTPUTS_MAX, Input, Output, semantic_call
from proxy.parrot.sampling import engine_members
from proxy.parrot.template import PLACEHOLDERS_MAX, Placeholder, parse


def placeholder(name: str) -> str:
    return "{{" + name + "}}"


def body(template: str = "Say {{x}}: {{y}}", **more: Any) -> dict[str, Any]:
    parameters = [{"name": "x", "is_output": False, "value": "hi"}, {"name": "y", "is_output": True}]
    return {"session_id": 1, "template": template, "parameters": parameters, **more}


def refused(body: dict[str, Any], status: int = 400) -> str:
    with pytest.raises(RequestFault) as fault:
        semantic_call(body)
    assert fault.value.status == status
    assert fault.value.param is not None and fault.value.message.startswith(f"{fault.value.param}: ")
    return fault.value.message


# --- templates ---

NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True)
CONSTANTS = st.text(st.sampled_from("ab {}_0\n€"), max_size=8)


@given(st.lists(NAMES | CONSTANTS.map(lambda text: ("constant", text)), max_size=12))
def test_a_template_is_its_pieces(parts: list[str | tuple[str, str]]) -> None:
    template = "".join(part[1] if isinstance(part, tuple) else placeholder(part) for part in parts)
    pieces = parse(template)
    assert "".join(piece if isinstance(piece, str) else placeholder(piece.name) for piece in pieces) == template
    assert "" not in pieces
    for piece in pieces:
        if isinstance(piece, Placeholder):
            assert template.startswith(placeholder(piece.name), piece.at)
        else:
            assert all(isinstance(inside, str) for inside in parse(piece)), "a placeholder was overlooked"
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in pairwise(pieces))


@given(st.lists(NAMES, max_size=6))
def test_placeholders_between_plain_words_are_all_found(names: list[str]) -> None:
    template = "word ".join(placeholder(name) for name in names)
    assert [piece.name for piece in parse(template) if isinstance(piece, Placeholder)] == names


@pytest.mark.parametrize("text", ["{{ x }}", "{{1x}}", "{{}}", "{x}", "{{x-y}}", "{{x}", "{{ä}}", "{{x\n}}"])
def test_what_is_no_placeholder_is_text(text: str) -> None:
    assert parse(text) == [text]


def test_braces_around_a_placeholder_are_text() -> None:
    assert parse("{{{x}}}") == ["{", Placeholder("x", 1), "}"]


def test_placeholders_have_a_limit() -> None:
    assert len(parse("{{x}}" * PLACEHOLDERS_MAX)) == PLACEHOLDERS_MAX
    assert "placeholders" in refused(body("{{x}}" * (PLACEHOLDERS_MAX + 1)), 413)


# --- calls ---


def test_a_call_ends_with_its_last_output() -> None:
    form = semantic_call(body("a {{x}} b {{y}} c {{x}} d", remove_pure_fill=False))
    assert form.pieces == ("a ", Placeholder("x", 2), " b ", Placeholder("y", 10))
    assert form.parameters["x"] == Input("x", None, "hi")
    assert isinstance(form.parameters["y"], Output)
    assert form.objective is None and form.models == () and form.name == "call"
    short, long = semantic_call(body("ä{{x}}{{y}}")), semantic_call(body("ää{{x}}{{y}} and so on"))
    assert long.held_bytes - short.held_bytes == len("ä and so on".encode())


def test_inputs_that_stand_behind_the_last_output_or_nowhere_are_taken() -> None:
    assert semantic_call(body("go: {{y}}")).pieces == ("go: ", Placeholder("y", 4))


@pytest.mark.parametrize(("criterion", "objective"), [("TTFT", "latency"), ("TPOT", "latency"), ("throughput",) * 2])
def test_criteria(criterion: str, objective: str) -> None:
    assert semantic_call(body(output_criteria=criterion)).objective == objective


def test_functions_have_names_that_can_stand_in_a_header() -> None:
    assert semantic_call(body(func_name="sum.v-2_x")).name == "sum.v-2_x"
    for odd in ("", "a b", "ü", "a\r\nb", "x" * 101, 7, None):
        assert semantic_call(body(func_name=odd)).name == "call"


def test_numbers_are_values_and_null_is_none() -> None:
    entries = [{"name": "x", "is_output": False, "value": 1.5, "var_id": None, "sampling_config": None}]
    form = semantic_call(body(parameters=[*entries, {"name": "y", "is_output": True, "var_id": None, "value": None}]))
    assert form.parameters["x"] == Input("x", None, "1.5")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"template": 7}, "template"),
        ({"template": "{{x}} {{z}} {{y}}"}, "template"),
        ({"template": "{{x}}"}, "parameters[1].name"),
        ({"template": "{{x}}{{y}}{{y}}"}, "template"),
        ({"template": "{{y}}"}, "template"),
        ({"template": ""}, "parameters[1].name"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": []}, "parameters"),
        ({"parameters": [7]}, "parameters[0]"),
        ({"models": "m"}, "models"),
        ({"models": [7]}, "models"),
        ({"models": ["m"] * 65}, "models"),
        ({"model_type": "image"}, "model_type"),
        ({"model_type": []}, "model_type"),
        ({"remove_pure_fill": 1}, "remove_pure_fill"),
        ({"cache_prefix": None}, "cache_prefix"),
        ({"fuse_fill": "no"}, "fuse_fill"),
        ({"output_criteria": "speed"}, "output_criteria"),
        ({"output_criteria": ["latency"]}, "output_criteria"),
    ],
)
def test_a_field_that_cannot_be_taken_is_named(change: dict[str, Any], path: str) -> None:
    assert refused(body(**change)).startswith(f"{path}: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["{{x}}", "a{{y}}", "x", "y", "latency"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "n", "1"]), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "y"]) | JSON, "is_output": st.booleans() | JSON},
    optional=dict.fromkeys(("var_id", "value", "sampling_config"), JSON),
)
FIELDS = ("models", "model_type", "remove_pure_fill", "cache_prefix", "output_criteria", "fuse_fill", "func_name")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "template": st.sampled_from(["a{{y}}", "{{x}} {{y}} b"]) | JSON,
            "parameters": st.lists(ENTRY | JSON, max_size=3) | JSON,
            **dict.fromkeys(FIELDS, JSON),
        },
    )
)
def test_any_body_is_taken_or_refused_with_a_path(anything: dict[str, Any]) -> None:
    form = fault = None
    try:
        form = semantic_call(anything)
    except RequestFault as refusal:
        fault = refusal
    if form is not None:
        last = form.pieces[-1]
        assert isinstance(last, Placeholder) and isinstance(form.parameters[last.name], Output)
    else:
        assert fault is not None and 400 <= fault.status < 500
        assert fault.param is not None and fault.message.startswith(f"{fault.param}: ")


@pytest.mark.parametrize("name", ["template", "parameters"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    incomplete = body()
    del incomplete[name]
    assert refused(incomplete) == f"{name}: is missing"


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"is_output": False, "value": "a"}, ".name"),
        ({"name": "", "is_output": False, "value": "a"}, ".name"),
        ({"name": "n" * 257, "is_output": False, "value": "a"}, ".name"),
        ({"name": "y", "is_output": False, "value": "a"}, ".name"),
        ({"name": "z", "value": "a"}, ".is_output"),
        ({"name": "z", "is_output": 1, "value": "a"}, ".is_output"),
        ({"name": "z", "is_output": False}, ""),
        ({"name": "z", "is_output": False, "value": "a", "var_id": "b"}, ""),
        ({"name": "z", "is_output": False, "var_id": 7}, ".var_id"),
        ({"name": "z", "is_output": False, "value": True}, ".value"),
        ({"name": "z", "is_output": False, "value": ["a"]}, ".value"),
        ({"name": "z", "is_output": False, "value": "a", "sampling_config": {}}, ".sampling_config"),
        ({"name": "z", "is_output": True, "var_id": "b"}, ".var_id"),
        ({"name": "z", "is_output": True, "value": "b"}, ".value"),
        ({"name": "z", "is_output": True, "sampling_config": []}, ".sampling_config"),
        ({"name": "z", "is_output": True, "sampling_config": {"top_k": 1}}, ".sampling_config.top_k"),
    ],
)
def test_a_parameter_that_cannot_be_taken_is_named(entry: dict[str, Any], path: str) -> None:
    parameters = [{"name": "y", "is_output": True}, entry]
    assert refused(body("a {{y}}", parameters=parameters)).startswith(f"parameters[1]{path}: ")


def test_outputs_have_a_limit() -> None:
    names = [f"o{number}" for number in range(OUTPUTS_MAX + 1)]
    parameters = [{"name": name, "is_output": True} for name in names]
    template = "".join("a" + placeholder(name) for name in names)
    refused(body(template, parameters=parameters), 413)
    assert (
        len(
            semantic_call(
                body(template, parameters=parameters[:-1]) | {"template": template[: -len("a{{o128}}")]}
            ).pieces
        )
        == 256
    )


# --- sampling ---


def test_what_the_front_end_always_sends_asks_for_nothing_beyond_openais_fields() -> None:
    defaults = {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_gen_length": 512,
        "ignore_tokenizer_eos": False,
        "stop_token_ids": [],
        "stop_str": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "best_of": 1,
        "logit_bias": None,
        "repetition_penalty": 0.0,
        "length_penalty": 0.0,
    }
    assert engine_members(defaults, "s") == engine_members(None, "s") == engine_members({}, "s")
    assert engine_members(None, "s") == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 512}


def test_every_field_reaches_the_engine_under_its_name() -> None:
    config = {
        "temperature": 0,
        "top_p": 0.5,
        "max_gen_length": 7,
        "ignore_tokenizer_eos": True,
        "stop_token_ids": [3],
        "stop_str": "END",
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "logit_bias": {"5": -1},
        "repetition_penalty": 1.1,
        "length_penalty": 2.0,
    }
    assert engine_members(config, "s") == {
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 7,
        "ignore_eos": True,
        "stop_token_ids": [3],
        "stop": "END",
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "logit_bias": {"5": -1},
        "repetition_penalty": 1.1,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", float("inf")),
        ("max_gen_length", 0),
        ("max_gen_length", 1.5),
        ("max_gen_length", True),
        ("ignore_tokenizer_eos", 1),
        ("stop_token_ids", [1.5]),
        ("stop_token_ids", list(range(65))),
        ("stop_str", 7),
        ("stop_str", ["a", 7]),
        ("n", 2),
        ("n", True),
        ("best_of", 3),
        ("logit_bias", {"1": "much"}),
        ("logit_bias", []),
        ("length_penalty", "x"),
    ],
)
def test_sampling_that_cannot_be_taken_is_named(name: str, value: Any) -> None:
    with pytest.raises(RequestFault) as fault:
        engine_members({name: value}, "parameters[0].sampling_config")
    assert fault.value.message.startswith(f"parameters[0].sampling_config.{name}: must be")
