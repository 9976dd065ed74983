"""What does Parrot's `sampling_config` mean to vLLM?"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson

from proxy.parrot.faults import wrong

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_GEN_LENGTH = 512
"""Tokens of an output that names no other limit."""
_STOPS_MAX = 64
_BIASES_MAX = 1_024
_BIAS_BYTES = 128
"""What an entry of a dictionary takes in memory, beside its text."""


def _number(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return None if good else "must be a number"


def _length(value: Any) -> str | None:
    return None if type(value) is int and 0 < value < 2**31 else "must be a positive integer"


def _switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _token_ids(value: Any) -> str | None:
    good = isinstance(value, list) and len(value) <= _STOPS_MAX and all(type(item) is int for item in value)
    return None if good else f"must be a list of at most {_STOPS_MAX} token ids"


def _stop(value: Any) -> str | None:
    texts = value if isinstance(value, list) else [value]
    good = len(texts) <= _STOPS_MAX and all(isinstance(text, str) for text in texts)
    return None if good else f"must be a text, or a list of at most {_STOPS_MAX}"


def _one(value: Any) -> str | None:
    return None if value == 1 and type(value) is int else "must be 1: a variable holds one text"


def _biases(value: Any) -> str | None:
    good = (
        isinstance(value, dict) and len(value) <= _BIASES_MAX and all(_number(bias) is None for bias in value.values())
    )
    return None if good else f"must be an object of at most {_BIASES_MAX} token ids with a number each"


_FIELDS: dict[str, tuple[Callable[[Any], str | None], str | None, Any]] = {
    "temperature": (_number, "temperature", None),
    "top_p": (_number, "top_p", None),
    "max_gen_length": (_length, "max_tokens", None),
    "ignore_tokenizer_eos": (_switch, "ignore_eos", False),
    "stop_token_ids": (_token_ids, "stop_token_ids", []),
    "stop_str": (_stop, "stop", []),
    "presence_penalty": (_number, "presence_penalty", 0),
    "frequency_penalty": (_number, "frequency_penalty", 0),
    "n": (_one, None, None),
    "best_of": (_one, None, None),
    "logit_bias": (_biases, "logit_bias", {}),
    # Parrot's default is 0 and means that there is none; an engine's neutral value is 1.
    "repetition_penalty": (_number, "repetition_penalty", 0),
    "length_penalty": (_number, None, None),
}
"""Check, the engine's name (None: it has none), and the value that asks for nothing and is therefore not sent: so an
engine that knows OpenAI's fields alone runs what uses no others."""


def engine_members(config: Any, path: str) -> dict[str, Any]:
    """The members of a request for an output with this configuration; null fields count as absent."""
    members: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": MAX_GEN_LENGTH}
    if config is None:
        return members
    if not isinstance(config, dict):
        raise wrong(path, "must be an object")
    for name, value in config.items():
        if (field := _FIELDS.get(name)) is None:
            raise wrong(f"{path}.{name[:64]}", f"is unknown; there are {', '.join(_FIELDS)}")
        check, member, nothing = field
        if value is None:
            continue
        if (problem := check(value)) is not None:
            raise wrong(f"{path}.{name}", problem)
        if member is not None and value != nothing:
            members[member] = value
    return members


def bytes_of(members: dict[str, Any]) -> int:
    """What they take in memory, about: stop texts may be as long as a body, biases many."""
    return len(orjson.dumps(members)) + _BIAS_BYTES * len(members.get("logit_bias", ()))
