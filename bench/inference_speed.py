"""What does looking at a prompt cost? Prompts of a given length, many workflows live, by the clock and in CPU time."""

from __future__ import annotations

import gc
import json
import random
import time
from typing import TYPE_CHECKING, Any

from proxy.answers import answer_texts
from scheduler.workflow.inference import ContentInference

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

TARGET_US = {4096: 30.0, 32_768: 200.0}
"""By a prompt's tokens: on average, with 1,000 workflows live. Printed beside the figures, and not asserted: what else
the machine does is in them."""
CHARACTERS_PER_TOKEN = 4
OUTPUT_CHARACTERS = 1200
BLOCK = 100
"""Prompts made at once: so that not all that the caches hold is what made them."""


def measure(prompt_tokens: int, args: argparse.Namespace, *, grown: bool) -> dict[str, Any]:
    """By the clock; and once more in CPU time, which other work on the machine makes longer, but not by its turns."""
    shown = speed(prompt_tokens, args, time.perf_counter, grown=grown)
    return shown | {"cpu_us": speed(prompt_tokens, args, time.thread_time, grown=grown)["mean_us"]}


def speed(prompt_tokens: int, args: argparse.Namespace, clock: Callable[[], float], *, grown: bool) -> dict[str, Any]:
    """Prompts of that length, each of which quotes its workflow's last output.

    `grown`: as an agent's conversation, the last answer and a short question new. Else one message, never seen before.
    """
    rng = random.Random(args.seed)
    inference = ContentInference(args.mib << 20)
    size = prompt_tokens * CHARACTERS_PER_TOKEN
    outputs: list[str] = [""] * args.live
    histories: list[list[tuple[str, str]]] = [[("system", "You are careful.")] for _ in range(args.live)]
    if grown:
        for history in histories:
            history += [("user", letters(rng, size // 8)) for _ in range(8)]
    arrived: list[float] = []
    answered: list[float] = []
    gc.collect()
    gc.disable()  # as the gateway all but does
    for number in range(args.rounds + 1):
        for first in range(0, args.live, BLOCK):
            block = range(first, min(first + BLOCK, args.live))
            prompts = [next_prompt(rng, histories[at], outputs[at], size, grown=grown) for at in block]
            for at, prompt in zip(block, prompts, strict=True):
                output, call_id, last = letters(rng, OUTPUT_CHARACTERS), f"{at}-{number}", f"{at}-{number - 1}"
                started = clock()
                placed = inference.arrived(call_id, "key", "m", prompt, 0.0)
                middle = clock()
                inference.answered(call_id, output, 0.0)
                ended = clock()
                origins = [placed.turn_of] if grown else [origin for origin, _ in placed.data_from]
                assert not number or origins == [last], "the last output was not found, or another was"
                outputs[at] = output
                if number:
                    arrived.append(1e6 * (middle - started))
                    answered.append(1e6 * (ended - middle))
    gc.enable()
    ordered = sorted(arrived)
    return {
        "prompt_tokens": prompt_tokens,
        "grown": grown,
        "live": args.live,
        "target_us": TARGET_US[prompt_tokens],
        "mean_us": sum(arrived) / len(arrived),
        "p50_us": ordered[len(ordered) // 2],
        "p99_us": ordered[len(ordered) * 99 // 100],
        "answered_us": sum(answered) / len(answered),
        "mib": inference.bytes_used / 2**20,
        "calls_kept": inference.counters.calls - inference.counters.evicted,
    }


def next_prompt(
    rng: random.Random, history: list[tuple[str, str]], last: str, size: int, *, grown: bool
) -> list[tuple[str, str]]:
    """The workflow's next: its history and what is new, or a text of that size with the last output in its middle."""
    if grown:
        history += [("assistant", last)] if last else []
        history.append(("user", letters(rng, 200)))
        return list(history)
    text = letters(rng, size - len(last))
    return [history[0], ("user", f"{text[: size // 2]}\n\n{last}\n\n{text[size // 2 :]}")]


def letters(rng: random.Random, size: int) -> str:
    """Letters that no other such text has, as many as asked for."""
    return rng.randbytes(size // 2 + 1).hex()[:size]


def answer_speed() -> dict[str, float]:
    """Taking the text out of an answer of 500 tokens: medians of several times, µs."""
    head = '"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1,"model":"m"'
    choice = '{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}'
    first = choice.replace('"content":" word"', '"role":"assistant","content":""')
    events = [first, *[choice] * 500]
    body = "".join(f'data: {{{head},"choices":[{event}]}}\n\n' for event in events).encode() + b"data: [DONE]\n\n"
    whole = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": " word" * 500}}]}).encode()
    assert answer_texts(body, stream=True) == answer_texts(whole, stream=False) == (" word" * 500,)
    stream_us = median_us(lambda: answer_texts(body, stream=True))
    whole_us = median_us(lambda: answer_texts(whole, stream=False))
    return {"stream_us": stream_us, "whole_us": whole_us}


def median_us(action: Callable[[], object], times: int = 201) -> float:
    """Its median time."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return 1e6 * sorted(seconds)[times // 2]
