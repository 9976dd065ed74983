"""What does a call say to the engine? The same bytes, whichever way its workflow goes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from workloads.text import WORDS_PER_TOKEN, prose, salt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workloads.shapes import CallShape


class Manner(NamedTuple):
    """How calls are made of a workload, the same for all of a play."""

    words_per_token: float = WORDS_PER_TOKEN
    """Of prose, by the engine's own tokenizer where it was asked."""
    salt: str = ""
    """Seed of a number before every prompt: plays of different salts share nothing in an engine's prefix cache, and
    what calls of one play share they share still. Empty: no such number."""
    tag: str = ""
    """Before every workflow's id on the wire: a gateway that outlives a play tells the plays apart by it."""
    free_running: bool = False
    """Answers may end by themselves; else all are as long as the workload says, so that plays do the same work."""
    tell_lengths: bool = False
    """The gateway is told how long each answer is expected to be, where the way in can say that."""
    streamed: bool = False
    """Answers come token by token, where the way in can do that."""
    sampling: Mapping[str, float] = {}
    """Members of every request beside those of the workload, as OpenAI and Parrot both name them: `temperature`, …"""


PLAIN = Manner()


def prompt_of(call: CallShape, output_of: Callable[[str], str], manner: Manner = PLAIN) -> str:
    """Its parts as paragraphs of one message. `output_of`: what stands where a node's answer is quoted."""
    ratio = manner.words_per_token
    parts = [
        prose(part.text, part.tokens, ratio) if part.output_of is None else output_of(part.output_of)
        for part in call.prompt
    ]
    return "\n\n".join([salt_of(manner.salt), *parts] if manner.salt else parts)


def quoted(call: CallShape) -> tuple[str, ...]:
    """The nodes whose answers stand in its prompt, each once."""
    return tuple(dict.fromkeys(part.output_of for part in call.prompt if part.output_of is not None))


def chat_body(model: str, prompt: str, output_tokens: int, manner: Manner = PLAIN) -> dict[str, Any]:
    """The body of a chat completion. `ignore_eos` and `min_tokens` are vLLM's: they fix the length."""
    fixed = {} if manner.free_running else {"ignore_eos": True, "min_tokens": output_tokens}
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": output_tokens,
        **fixed,
        "temperature": 0,
        **manner.sampling,
    }
