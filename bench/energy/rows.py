"""What does the live model make of rows that were measured on a card? Each predicted from the others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.twin.model_config import read_model
from backends.twin.prior import prior_of
from backends.twin.roofline import prior as roofline_prior
from bench.energy.play import off
from scheduler.energy.model import EnergyModel
from scheduler.energy.window import Energy, Shares, Window
from scheduler.energy.work import NOTHING, Work, call_work

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).parents[1] / "twin" / "data" / "h200-decode-prefill.json"
MODEL = Path(__file__).parents[1] / "twin" / "models" / "llama-3.1-8b-instruct.json"
FULL_CLOCK_MHZ = 1950.0
BUDGET_TOKENS = 8192
"""vLLM's budget of a step when the rows were measured."""
IDLE_SECONDS = 5.0
PASSES = 3


def h200_rows(prior_off: float, seed: int) -> Iterator[str]:
    """Lines of a report: errors of decode and prefill rows, each left out in turn, with a roofline prior made wrong."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    windows = list(_windows(data["rows"]))
    prior = prior_of(roofline_prior("h200", read_model(MODEL)))
    rng = random.Random(seed)
    errors: dict[str, list[tuple[float, float, bool]]] = {"decode": [], "prefill": []}
    for place, (kind, window) in enumerate(windows):
        model = EnergyModel(off(prior, prior_off, rng))
        others = [other for at, (_, other) in enumerate(windows) if at != place]
        model.learn(_idle(data["static"]["idle_loaded_w"]))
        for _ in range(PASSES):
            rng.shuffle(others)
            for other in others:
                model.learn(other)
        cost = model.predict_window(window.work, window.seconds, window.limit_watts)
        joules = window.energy.gpu or 0.0
        alone = model.predict_window(window.work, cost.busy_seconds.value, window.limit_watts).joules
        errors[kind].append(
            (cost.busy_seconds.value / window.seconds - 1, alone.value / joules - 1, alone.low <= joules <= alone.high)
        )
    for kind, found in errors.items():
        time = sum(abs(each[0]) for each in found) / len(found)
        energy = sum(abs(each[1]) for each in found) / len(found)
        worst = max(abs(each[1]) for each in found)
        covered = sum(each[2] for each in found)
        yield (
            f"H200 {kind} rows, each left out in turn: {len(found)} rows, time {time:.1%}, joules {energy:.1%} (worst"
            f" {worst:.1%}), the interval held {covered}"
        )


def _windows(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Window]]:
    for row in rows:
        if row["kind"] == "decode":
            batch, tokens, seconds = row["batch"], row["tokens"], row["window_s"]
            steps = tokens / batch
            # All of them were in decode before the window began.
            context = batch * steps * (row["context"] + steps / 2)
            work = Work(steps, tokens, context)
            yield "decode", _window(work, seconds, row["j_per_tok"] * tokens, row.get("sm_mhz", 0.0) < FULL_CLOCK_MHZ)
        elif row["kind"] == "prefill":
            n, tokens = row["n"], row["tokens"]
            steps = max(n * tokens / BUDGET_TOKENS, n / max(1.0, min(row["conc"], BUDGET_TOKENS / tokens)))
            work = (call_work(tokens, 0.0, 1.0) * n)._replace(steps=steps, prompts=steps)
            seconds = n * row["ms_per_req"] / 1e3
            yield "prefill", _window(work, seconds, row["j_per_tok"] * n * tokens, throttled=True)


def _window(work: Work, seconds: float, joules: float, throttled: bool) -> Window:
    return Window(
        "h200",
        0,
        0.0,
        seconds,
        Shares.of(()),
        work,
        NOTHING,
        seconds,
        Energy(joules),
        700.0,
        False,
        throttled,
        "measured",
        True,
    )


def _idle(watts: float) -> Window:
    return _window(NOTHING, IDLE_SECONDS, watts * IDLE_SECONDS, throttled=False)._replace(busy_seconds=0.0)
