"""What does a call say to the engine? The same bytes, whichever way its workflow goes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workloads.text import prose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workloads.shapes import CallShape


def prompt_of(call: CallShape, output_of: Callable[[str], str]) -> str:
    """Its parts as paragraphs of one message. `output_of`: what stands where a node's answer is quoted."""
    return "\n\n".join(
        [prose(part.text, part.tokens) if part.output_of is None else output_of(part.output_of) for part in call.prompt]
    )


def quoted(call: CallShape) -> tuple[str, ...]:
    """The nodes whose answers stand in its prompt, each once."""
    return tuple(dict.fromkeys(part.output_of for part in call.prompt if part.output_of is not None))


def chat_body(model: str, prompt: str, output_tokens: int, sampling: Mapping[str, float]) -> dict[str, Any]:
    """The body of a chat completion.

    `ignore_eos` is vLLM's: answers as long as the workload says, so that two plays of it are comparable.
    """
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        **sampling,
    }
