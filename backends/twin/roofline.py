"""A calibration for a card and a model that nobody has measured: from the datasheet and the model's config.json."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, PositiveFloat

from backends.twin.calibration import Calibration, CalibrationError, checked

if TYPE_CHECKING:
    from backends.twin.model_config import ModelShape

_CARDS = Path(__file__).parent / "cards.toml"

# How far from the datasheet, set by hand: memory, arithmetic and its power by the H200 rows of Llama-3.1-8B; host and
# power a byte while looking at ML.ENERGY's H100 chat rows of five dense models. What is checked on what else, and what
# is not independent of these: docs/twin-accuracy.md.
MEMORY_SHARE = 0.86
"""Of the bandwidth, while weights are read."""
KV_SHARE = 0.93
"""Of the bandwidth, while the KV cache is read."""
REPEATED_SHARE = 0.64
"""What reading a shared prefix again costs, against reading it from memory: it comes from the L2 cache."""
LAYER_SECONDS = 42e-6
"""Fixed time a layer and step: launches, small kernels."""
ALL_REDUCE_SECONDS = 9e-6
"""Each of two a layer, where a model is spread over cards."""
DECODE_FLOPS = 0.75
"""Time of a decoded token's arithmetic, against peak throughput: much of it hides behind the reading of weights."""
PREFILL_FLOPS = 0.91
"""Of peak throughput, at full clock."""
ATTENTION_FLOPS = 0.60
"""Of peak throughput, in the attention of prefill."""
HOST_SECONDS = 54e-6
"""Work of the host on each sequence and step, where scheduling does not overlap with the card's work."""
BYTE_POWER = 0.88
FLOP_POWER = 1.8
"""Power above idle at full bandwidth or peak throughput, against the default limit less idle."""
HOST_POWER = 0.45
"""Power above idle while the card waits for the host, against the same."""
ONSET, EXPONENT = 0.914, 0.79
TIME_ERROR, ENERGY_ERROR = 0.15, 0.20


class Datasheet(BaseModel):
    """Of one card."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    memory_bytes_per_second: PositiveFloat
    flops_per_second: PositiveFloat
    memory_bytes: PositiveFloat
    l2_bytes: PositiveFloat
    limit_watts_min: PositiveFloat
    limit_watts_max: PositiveFloat
    idle_watts: PositiveFloat
    sm_clock_max_mhz: PositiveFloat
    power_share: PositiveFloat = 1.0
    """Power per byte and operation against that of the Hopper cards, all in shares of the default limit less idle."""


@cache
def datasheets() -> dict[str, Datasheet]:
    """Card → its figures."""
    data = tomllib.loads(_CARDS.read_text(encoding="utf-8"))
    return {name: Datasheet.model_validate(figures) for name, figures in data.items()}


def prior(
    card: str, shape: ModelShape, gpus: int = 1, *, async_scheduling: bool = True, max_num_seqs: int = 256
) -> Calibration:
    """Roofline: each term is bytes over bandwidth or operations over throughput. Raises CalibrationError for an unknown
    card, or a model that does not fit into its memory."""
    sheet = datasheets().get(card.lower())
    if sheet is None:
        raise CalibrationError(f"card: {card!r} is none of {', '.join(datasheets())}")
    if gpus < 1:
        raise CalibrationError(f"gpus: must be at least 1, not {gpus}")
    kv_bytes = 0.9 * sheet.memory_bytes * gpus - shape.total_bytes - 2e9 * gpus
    kv_tokens = int(kv_bytes / shape.kv_bytes_per_token) // 16 * 16
    if kv_tokens < 2048:
        size = f"{shape.total_bytes / 1e9:.0f} GB"
        raise CalibrationError(f"gpus: {shape.id} of {size} and a KV cache do not fit into {gpus} × {sheet.name}")
    model_len = min(shape.max_model_len, kv_tokens)
    bandwidth, flops = sheet.memory_bytes_per_second * gpus, sheet.flops_per_second * gpus
    span_watts = (sheet.limit_watts_max - sheet.idle_watts) * gpus * sheet.power_share
    byte_joules, flop_joules = BYTE_POWER * span_watts / bandwidth, FLOP_POWER * span_watts / flops
    weights = shape.dense_parameters * shape.weight_bytes
    experts = shape.expert_parameters * shape.weight_bytes
    token_flops, kv = 2.0 * shape.active_parameters, shape.kv_bytes_per_token
    host = 0.0 if async_scheduling else HOST_SECONDS
    fixed = LAYER_SECONDS * shape.layers + (2 * ALL_REDUCE_SECONDS * shape.layers if gpus > 1 else 0.0)
    return checked(
        {
            "name": f"{card.lower()}-{shape.id}" + (f"-tp{gpus}" if gpus > 1 else ""),
            "source": f"roofline prior from {sheet.name}'s datasheet and the model's config.json: nothing measured",
            "card": {
                **sheet.model_dump(include={"name", "limit_watts_min", "limit_watts_max", "sm_clock_max_mhz"}),
                "limit_watts_default": sheet.limit_watts_max,
                "gpus": gpus,
                "idle_watts": sheet.idle_watts * gpus,
            },
            "model": {"id": shape.id, "max_model_len": model_len, "vocabulary": shape.vocabulary},
            "engine": {
                "kv_cache_tokens": kv_tokens,
                "async_scheduling": async_scheduling,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max(8192, max_num_seqs),
            },
            "time": {
                "step": weights / (bandwidth * MEMORY_SHARE) + fixed,
                "decode_token": DECODE_FLOPS * token_flops / flops + host,
                "context_token": kv / (bandwidth * KV_SHARE),
                "repeated_token": REPEATED_SHARE * kv / (bandwidth * KV_SHARE),
                "prefill_token": token_flops / (flops * PREFILL_FLOPS),
                "attention_pair": shape.pair_flops / (flops * ATTENTION_FLOPS),
                "expert_step": experts / (bandwidth * MEMORY_SHARE),
            },
            "energy": {
                "step": byte_joules * weights,
                "decode_token": flop_joules * token_flops + HOST_POWER * span_watts * host,
                "context_token": byte_joules * kv,
                "repeated_token": REPEATED_SHARE * byte_joules * kv,
                "prefill_token": flop_joules * token_flops,
                "attention_pair": flop_joules * shape.pair_flops,
                "expert_step": byte_joules * experts,
            },
            "cap": {"onset": ONSET, "decode_exponent": EXPONENT, "prefill_exponent": EXPONENT},
            "uncertainty": {"time": TIME_ERROR, "energy": ENERGY_ERROR},
            "experts": {"total": shape.experts, "active": shape.active_experts} if shape.experts else None,
        },
        f"{card} with {shape.id}",
    )
