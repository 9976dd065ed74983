"""What does a model weigh, read and compute? From a Hugging Face config.json, dense or a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from backends.twin.calibration import CalibrationError

if TYPE_CHECKING:
    from pathlib import Path

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0, "int8": 1.0}
_QUANTIZED_BYTES = {"fp8": 1.0, "compressed-tensors": 1.0, "awq": 0.53, "gptq": 0.53, "mxfp4": 0.53}
"""Per weight, scales included; compressed-tensors taken as 8 bit."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class ModelShape(NamedTuple):
    """Sizes in parameters and bytes; all for the whole model, whatever it is spread over."""

    id: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    vocabulary: int
    max_model_len: int
    dense_parameters: float
    """Read in each step: all but the input embedding and the experts."""
    expert_parameters: float
    """Of all experts together; 0 for a dense model."""
    experts: int
    active_experts: int
    weight_bytes: float
    """Bytes a parameter."""
    kv_bytes_per_token: float
    total_bytes: float
    """Of all weights in memory."""

    @property
    def active_parameters(self) -> float:
        """Parameters that a token is multiplied with."""
        share = self.active_experts / self.experts if self.experts else 0.0
        return self.dense_parameters + share * self.expert_parameters

    @property
    def pair_flops(self) -> float:
        """Floating-point operations of attention for one new token and one token before it."""
        return 4.0 * self.layers * self.heads * self.head_dim


def read_model(path: Path) -> ModelShape:
    """The shape of the model whose config.json this is. Raises CalibrationError that names what is missing."""
    try:
        data = orjson.loads(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error}") from None
    except orjson.JSONDecodeError as error:
        raise CalibrationError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CalibrationError(f"{path}: a model's config.json is a JSON object")
    return model_shape(data, str(path))


def model_shape(config: dict[str, Any], where: str = "config.json") -> ModelShape:
    """As `read_model`, from the parsed file. Multimodal configs are read by their `text_config`."""
    text = config.get("text_config")
    fields: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config

    def count(name: str, default: int | None = None) -> int:
        value = fields.get(name, default)
        if value is None:
            raise CalibrationError(f"{where}: {name} is missing")
        if type(value) is not int or value < 1:
            raise CalibrationError(f"{where}: {name} must be a whole number from 1 on, not {value!r}")
        return value

    hidden, layers, heads = count("hidden_size"), count("num_hidden_layers"), count("num_attention_heads")
    kv_heads = count("num_key_value_heads", heads)
    head_dim = count("head_dim", max(1, hidden // heads))
    vocabulary = count("vocab_size")
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    experts = next((count(name) for name in _EXPERTS if name in fields), 0)
    expert_parameters = 0.0
    if experts:
        active = count("num_experts_per_tok")
        if active > experts:
            raise CalibrationError(f"{where}: num_experts_per_tok ({active}) is over the number of experts ({experts})")
        width = count("moe_intermediate_size", fields.get("intermediate_size"))
        expert_parameters = 3.0 * layers * hidden * width * experts
        feed_forward = 3.0 * hidden * fields.get("shared_expert_intermediate_size", 0) + hidden * experts
    else:
        active = 0
        feed_forward = 3.0 * hidden * count("intermediate_size")
    embedding = float(vocabulary * hidden)
    dense = layers * (attention + feed_forward) + embedding  # the output head is read, the input table is looked into
    weight_bytes, value_bytes = _bytes(fields, where)
    tied = bool(fields.get("tie_word_embeddings", False))
    total = (dense + expert_parameters) * weight_bytes + (0.0 if tied else embedding * value_bytes)
    name = str(config.get("_name_or_path") or config.get("model_type") or "model")
    return ModelShape(
        name, layers, hidden, heads, head_dim, vocabulary, count("max_position_embeddings", 32_768), dense,
        expert_parameters, experts, active, weight_bytes, 2.0 * layers * kv_heads * head_dim * value_bytes, total,
    )  # fmt: skip


def _bytes(fields: dict[str, Any], where: str) -> tuple[float, float]:
    """Bytes of a weight and of a value in the KV cache."""
    dtype = fields.get("dtype") or fields.get("torch_dtype") or "bfloat16"
    if dtype not in _BYTES:
        raise CalibrationError(f"{where}: dtype {dtype!r} is none of {', '.join(_BYTES)}")
    value_bytes = min(_BYTES[dtype], 2.0)
    quantization = fields.get("quantization_config")
    if not isinstance(quantization, dict):
        return _BYTES[dtype], value_bytes
    method = quantization.get("quant_method")
    if method not in _QUANTIZED_BYTES:
        raise CalibrationError(f"{where}: quant_method {method!r} is none of {', '.join(_QUANTIZED_BYTES)}")
    return _QUANTIZED_BYTES[method], value_bytes
