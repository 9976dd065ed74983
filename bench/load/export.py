"""`joulegate-bench export`: a workload's calls as a file of prompts that `vllm bench serve` and `guidellm` play."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load.options import spec_of
from bench.programs import BenchError
from workloads.prompts import prompt_of
from workloads.text import WORDS_PER_TOKEN, prose

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from bench.load.spec import Spec
    from workloads.shapes import CallShape

CALLS_MAX = 1_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    parser.add_argument("--workload", metavar="NAME", help="what is exported (default: composite)")
    parser.add_argument("--preset", metavar="NAME", help="its size: published, small or cpu")
    parser.add_argument("--input-scale", dest="input_scale", metavar="X", help="all prompt lengths times so much")
    parser.add_argument("--output-scale", dest="output_scale", metavar="X", help="all answer lengths times so much")
    parser.add_argument("--set", dest="parameters", metavar="NAME=VALUE", action="append", help="a length; repeatable")
    parser.add_argument("--mix", dest="mix", metavar="KIND=SHARE", action="append", help="of the composite; repeatable")
    parser.add_argument("--seed", metavar="N", help="of the workflows (default: 1)")
    parser.add_argument("--calls", type=int, default=200, metavar="N", help="(default: 200)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")


def run(args: argparse.Namespace) -> int:
    """0. BenchError for what cannot be made or written."""
    if not 1 <= args.calls <= CALLS_MAX:
        raise BenchError(f"--calls must be from 1 to {CALLS_MAX:,}, not {args.calls}")
    if args.out.suffix != ".jsonl":
        raise BenchError(f"--out {args.out}: both tools know such files by the ending .jsonl")
    spec = spec_of(args)
    if spec.workload == "trace":
        raise BenchError("--workload trace: a trace has no text to export")
    try:
        with args.out.open("w", encoding="utf-8") as file:
            for line in islice(lines(spec), args.calls):
                file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise BenchError(f"{args.out}: {error.strerror}") from None
    print(f"{args.out}: {args.calls} calls of {spec.workload}, seed {spec.seed}; they no longer wait for each other")
    return 0


def lines(spec: Spec) -> Iterator[dict[str, Any]]:
    """A call each, workflow by workflow, without end. `output_tokens` is vLLM's name,
    `output_tokens_count` guidellm's."""
    for workflow in spec.generator.stream(random.Random(f"{spec.seed} 1"), f"r1-{spec.seed}"):
        for call in workflow.calls:
            yield {
                "prompt": prompt_of(call, lambda node, call=call, name=workflow.id: _answer(call, node, name)),  # type: ignore[misc]
                "output_tokens": call.output_tokens,
                "output_tokens_count": call.output_tokens,
                "workflow": workflow.id,
                "node": call.node,
            }


def _answer(call: CallShape, node: str, workflow: str) -> str:
    """Where an earlier answer is quoted: prose as long as that will be, the same wherever it is quoted."""
    part = next(part for part in call.prompt if part.output_of == node)
    return prose(f"{workflow} {node} answer", part.tokens, WORDS_PER_TOKEN)
