"""What is known of an engine and its card: the numbers of one calibration, read from its file and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FOLDER = Path(__file__).parent / "calibrations"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class CalibrationError(Exception):
    """A calibration that cannot be used; the message names the file, the field and the way out."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Card(_Part):
    """`gpus` cards of one kind that work as one engine. Watts and joules everywhere else are sums over all of them."""

    name: str
    gpus: Count = 1
    limit_watts_min: Positive
    limit_watts_max: Positive
    limit_watts_default: Positive
    """These three are of one card."""
    idle_watts: Positive
    """All cards of the engine together, model loaded, nothing running."""
    asleep_watts: Positive | None = None
    """The same while vLLM sleeps (level 1: weights out of the cards' memory). Absent: as idle, until it is measured."""
    sm_clock_max_mhz: Positive
    settle_seconds: Positive = 0.25
    """Time constant with which a new power limit comes into force."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.limit_watts_min <= self.limit_watts_default <= self.limit_watts_max:
            raise ValueError("limit_watts_min ≤ limit_watts_default ≤ limit_watts_max does not hold")
        if self.idle_watts >= self.limit_watts_max * self.gpus:
            raise ValueError("idle_watts is not below the highest power limit")
        if self.asleep_watts is not None and self.asleep_watts > self.idle_watts:
            raise ValueError("asleep_watts is over idle_watts")
        return self


class Model(_Part):
    """The served model."""

    id: str
    max_model_len: Count
    vocabulary: Count = 128_256


class EngineLimits(_Part):
    """vLLM's own settings."""

    vllm: str = "0.24.0"
    block_tokens: Count = 16
    kv_cache_tokens: Count
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    async_scheduling: bool = True
    schedule_seconds: NotNegative = 0.002
    """With async scheduling the next step is scheduled so long after the start of the one before it."""
    prefix_caching: bool = True
    prompt_step_seconds: NotNegative = 0.0
    """A step with prompt tokens ends at the earliest so long after it was scheduled: where CUDA graphs are for decode
    only, the host starts each of its kernels, and few tokens are done before it has started them all. With async
    scheduling it does so while the step before runs. It is the host's figure, not the card's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kv_cache_tokens % self.block_tokens:
            raise ValueError(f"kv_cache_tokens is not a multiple of block_tokens ({self.block_tokens})")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens is below max_num_seqs, which vLLM refuses")
        return self


class Terms(_Part):
    """Coefficients of one engine step, in seconds or in joules above idle, before any power limit (design: T and E).

    value = step + decode_token·D + context_token·C + repeated_token·R + prefill_token·P + attention_pair·A
          + expert_step·(1 − (1 − k/E)^(D+P))

    D: sequences that decode; C: distinct tokens of KV cache that are read; R: tokens read again by further sequences
    that share a prefix (from the L2 cache, not from memory); P: prompt tokens computed anew; A: Σ over chunks of new
    tokens × mean tokens before each. The last term is a mixture of experts': the share of the experts that is used.
    """

    step: Positive
    """Fixed: weights read once, launches, the engine's own loop."""
    decode_token: NotNegative
    context_token: NotNegative
    repeated_token: NotNegative
    prefill_token: NotNegative
    attention_pair: NotNegative
    expert_step: NotNegative = 0.0


class Experts(_Part):
    """A mixture of experts: `active` of `total` are used by each token."""

    total: Count
    active: Count

    @model_validator(mode="after")
    def _active_exist(self) -> Self:
        if self.active > self.total:
            raise ValueError(f"active ({self.active}) is over total ({self.total})")
        return self


class CapLayer(_Part):
    """What a power limit does to a step of `demand` watts: slowdown = max(1, onset·demand/limit)^exponent, and power
    = min(demand, draw·limit). `onset` < 1: memory-bound work loses clock before it loses time.

    The card does not know at once: it acts on a moving average of the demand, and in so far as that is not yet over
    draw·limit, work goes on as if there were no limit."""

    onset: Annotated[float, Field(gt=0.3, le=1.5)]
    decode_exponent: Annotated[float, Field(ge=0, le=3)]
    prefill_exponent: Annotated[float, Field(ge=0, le=3)]
    draw: Annotated[float, Field(gt=0.5, le=1)] = 0.99
    average_seconds: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Time constant of that average; 0: it acts at once."""


class Frontend(_Part):
    """Time a call spends outside the engine's core, in seconds: HTTP, tokenizer and queue before it, text and HTTP
    behind it. `serial_seconds`: of that, what the API server's one process works on a call, one after another."""

    input_seconds: NotNegative = 0.001
    output_seconds: NotNegative = 0.001
    serial_seconds: NotNegative = 0.0


class Uncertainty(_Part):
    """Relative standard error to expect of a prediction for this card and model."""

    time: Positive
    energy: Positive


class Calibration(_Part):
    """All of it. `source` says where the numbers come from."""

    name: str
    source: str
    card: Card
    model: Model
    engine: EngineLimits
    time: Terms
    energy: Terms
    cap: CapLayer
    frontend: Frontend = Frontend()
    uncertainty: Uncertainty
    experts: Experts | None = None

    @model_validator(mode="after")
    def _experts_known(self) -> Self:
        if (self.time.expert_step or self.energy.expert_step) and self.experts is None:
            raise ValueError("expert_step is given without [experts]")
        return self


def names() -> list[str]:
    """The calibrations that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Calibration:
    """A shipped calibration by its name, or one of the user's own by its path. Raises CalibrationError."""
    path = Path(name_or_path)
    if name_or_path in names():
        path = FOLDER / f"{name_or_path}.toml"
    elif path.suffix != ".toml":
        raise CalibrationError(
            f"no calibration {name_or_path!r}; there are: {', '.join(names())}, or a path to a .toml"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise CalibrationError(f"{path} is not TOML: {error}") from None
    return checked(data, str(path))


def checked(data: object, where: str) -> Calibration:
    """A calibration from its data. Raises CalibrationError that names each bad field."""
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'calibration'}: {each['msg']}"
            + (f" (is {each['input']!r})" if isinstance(each["input"], str | int | float) else "")
            for each in error.errors()
        )
        raise CalibrationError(f"{where}: {problems}") from None
