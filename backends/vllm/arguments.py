"""Which arguments is `vllm serve` given? The flags that the scheduler needs, and the user's own, which win."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Needed(NamedTuple):
    """A flag that the gateway sets (`value` None: a switch), and what is lost without it."""

    flag: str
    value: str | None
    lost: str


NEEDED = (
    Needed("--scheduling-policy", "priority", "vLLM ignores or refuses the priorities that policies set"),
    Needed("--enable-prefix-caching", None, "calls of a workflow compute their shared prefix anew"),
    Needed("--enable-prompt-tokens-details", None, "how many prompt tokens came from the cache is unknown"),
    Needed("--enable-request-id-headers", None, "vLLM does not give back the id of a request"),
    Needed("--enable-server-load-tracking", None, "vLLM's /load says nothing"),
)

_OWN = {"--host": "", "--port": "; say `joulegate up --vllm-port PORT`", "--uds": ""}
_TLS = ("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs")


class BadArguments(ValueError):
    """Arguments of the user's that the gateway cannot work with; the message says the way out."""


def serve_arguments(model: str, port: int, extra: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments behind `vllm`, warnings). Raises BadArguments."""
    given = _given(extra)
    for flag in (*_OWN, *_TLS):
        if flag in given:
            raise BadArguments(
                f"{flag} cannot be passed to a vLLM that the gateway starts: it is reached at 127.0.0.1 over plain "
                f"HTTP{_OWN.get(flag, '')}. Or start vLLM yourself and use `joulegate up --engine URL`"
            )
    arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(port)]
    warnings = []
    for flag, value, lost in NEEDED:
        negation = f"--no-{flag.removeprefix('--')}"
        if negation in given:
            warnings.append(f"{negation} is passed to vLLM as given: {lost}")
        elif flag not in given:
            arguments += [flag] if value is None else [flag, value]
        elif value is not None and given[flag] != value:
            warnings.append(f"{flag} {given[flag]} is passed to vLLM as given, not {value}: {lost}")
    return [*arguments, *extra], warnings


def _given(extra: Iterable[str]) -> dict[str, str | None]:
    """Flag as vLLM spells it in its help → its value, if one follows. vLLM takes --a_b for --a-b."""
    given: dict[str, str | None] = {}
    flag = None
    for word in extra:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            given[flag] = value if equals else None
        elif flag is not None and given[flag] is None:
            given[flag] = word
    return given
