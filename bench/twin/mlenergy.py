"""ML.ENERGY's rows on the twin: as many clients as the batch is large, each sends again when it is answered."""

from __future__ import annotations

import csv
import random
from typing import TYPE_CHECKING, Any

from bench.twin.lab import Lab, Sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backends.twin.calibration import Calibration
    from backends.twin.steps import StepRun

PROMPT_TOKENS = {"lm-arena-chat": 250, "gpqa": 300, "sourcegraph-fim": 600}
"""The data set does not say how long its prompts are: assumed, mean a task; the first set at its H100 rows."""
PROMPT_SIGMA = 1.3
"""Prompt lengths are drawn from a log-normal distribution: most are short, a few very long."""
OUTPUT_SHAPE = 2.0
"""Output lengths are drawn from a Gamma distribution of this shape around the row's mean."""
ROUNDS = 3
SEED = 5


def read_rows(
    path: Path, gpu: str, model_id: str, gpus: int | None = None, task: str | None = None
) -> list[dict[str, Any]]:
    """The rows of one GPU and model, numbers as numbers. ValueError if there are none."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {name: _value(text) for name, text in row.items()}
            for row in csv.DictReader(file)
            if row["gpu_model"] == gpu and row["model_id"] == model_id
        ]
    rows = [row for row in rows if (gpus is None or row["num_gpus"] == gpus) and (task is None or row["task"] == task)]
    if not rows:
        raise ValueError(f"no rows of {model_id} on {gpu} in {path}")
    return rows


def _value(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def predict(row: dict[str, Any], calibration: Calibration) -> dict[str, float]:
    """What the twin measures in the middle of such a run: ITL (median over tokens), throughput, power, energy."""
    limits = calibration.engine
    batch = max(1, round(row["avg_batch_size"]))
    if batch > limits.max_num_seqs:
        engine = limits.model_copy(update={"max_num_seqs": batch, "max_num_batched_tokens": max(8192, batch)})
        calibration = calibration.model_copy(update={"engine": engine})
    lab = Lab(calibration)
    rng = random.Random(SEED)
    prompt_mean = PROMPT_TOKENS.get(row["task"], 300)
    steps: list[tuple[float, int]] = []
    lab.engine.watch = _recorder(lab, steps)
    mean = row["avg_output_len"]

    def send(done: Callable[[Sent], None]) -> Sent:
        prompt = 1 + round(prompt_mean * rng.lognormvariate(-(PROMPT_SIGMA**2) / 2, PROMPT_SIGMA))
        output = max(1, round(rng.gammavariate(OUTPUT_SHAPE, mean / OUTPUT_SHAPE)))
        longest = calibration.model.max_model_len
        return lab.send(min(prompt, longest // 2), min(output, longest // 2), done=done)

    # The first round fills the batch, with ends spread out; the last is the tail: what lies between is measured.
    marks: list[tuple[float, float, int]] = []
    ended = 0

    def one_more(_: Sent | None = None) -> None:
        nonlocal ended
        ended += 1
        if ended in (batch, batch * ROUNDS):
            marks.append((lab.now, lab.joules, lab.engine.totals.generation_tokens))
        if ended < batch * ROUNDS:
            send(one_more)

    for _ in range(batch):
        send(one_more)
    while len(marks) < 2:
        lab.run(until=lab.now + 1.0)
    (start, joules, tokens), (end, joules_end, tokens_end) = marks
    seconds, used, made = end - start, joules_end - joules, tokens_end - tokens
    return {
        "median_itl_ms": 1e3 * _weighted_median(steps),
        "output_throughput_tokens_per_sec": made / seconds,
        "avg_power_watts": used / seconds,
        "energy_per_token_joules": used / made,
    }


def _recorder(lab: Lab, steps: list[tuple[float, int]]) -> Callable[[StepRun], None]:
    def record(run: StepRun) -> None:
        steps.append(((run.end - run.start) / run.steps, run.steps * run.batch.decode))

    return record


def _weighted_median(steps: list[tuple[float, int]]) -> float:
    half = sum(weight for _, weight in steps) / 2
    for seconds, weight in sorted(steps):
        half -= weight
        if half <= 0:
            return seconds
    raise ValueError("no steps")
