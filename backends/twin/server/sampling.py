"""Which parameters are allowed, and what do they come to? In vLLM's order and words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from backends.twin.server.answers import Sampling
from backends.twin.server.errors import ApiError, bad_parameter
from backends.twin.server.forms import text_of_format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.fields import SamplingFields

N_MAX = 128
"""vLLM's is 16384, which is an environment variable there: each sequence costs memory here."""
LOGPROBS_MAX = 20


def max_tokens_of(asked: int | None, prompt_tokens: int, max_model_len: int, field: str = "max_tokens") -> int:
    """How many output tokens there may be."""
    if asked is not None and asked > max_model_len:
        raise ApiError(
            f"{field}={asked} cannot be greater than max_model_len={max_model_len}. Please request fewer"
            " output tokens.",
            param=field,
            value=asked,
        )
    room = max_model_len - prompt_tokens
    tokens = room if asked is None else min(asked, room)
    if tokens < 1:
        raise ApiError(f"max_tokens must be at least 1, got {tokens}.", param="max_tokens", value=tokens)
    return tokens


def check_prompt_length(tokens: int, max_model_len: int, *, cut: bool) -> None:
    """ApiError for a prompt longer than the model. `cut`: it was not read any further."""
    if tokens <= max_model_len:
        return
    least = f"at least {max_model_len + 1}" if cut else str(tokens)
    raise ApiError(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {least} input"
        " tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input"
        " prompt.",
        param="input_tokens",
        value=max_model_len + 1 if cut else tokens,
    )


def check_logprobs(count: int | None, field: str) -> None:
    """ApiError for a number of logprobs that vLLM does not give."""
    if count is None or count == -1:
        return
    if count < 0:
        raise ApiError(f"`{field}` must be a positive value or -1.", param=field, value=count)
    if count > LOGPROBS_MAX:
        kind = "prompt" if field == "prompt_logprobs" else "sample"
        name = "prompt_logprobs" if kind == "prompt" else "logprobs"
        raise ApiError(
            f"Requested {kind} logprobs of {count}, which is greater than max allowed: {LOGPROBS_MAX}",
            param=name,
            value=count,
        )


def check_before(fields: SamplingFields) -> None:
    """What vLLM refuses while it reads the body."""
    if fields.stream_options is not None and not fields.stream:
        raise bad_parameter("Stream options can only be defined when `stream=True`.", "stream_options")
    if fields.prompt_logprobs is not None:
        if fields.stream and (fields.prompt_logprobs > 0 or fields.prompt_logprobs == -1):
            raise bad_parameter("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
        if fields.prompt_logprobs < -1:
            check_logprobs(fields.prompt_logprobs, "prompt_logprobs")
    if fields.use_beam_search:
        raise bad_parameter("The twin (simulated) has no beam search.", "use_beam_search")
    if fields.cache_salt == "":
        raise bad_parameter("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    wanted = fields.response_format
    if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
        raise bad_parameter(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.", "response_format"
        )


def sampling_of(
    fields: SamplingFields, max_tokens: int, prompt_ids: Sequence[int], vocabulary: int, text: str | None = None
) -> Sampling:
    """The parameters, checked. `text`: what the answer must be, where that is decided already."""
    temperature = 1.0 if fields.temperature is None else fields.temperature
    check_numbers(
        n=fields.n,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        temperature=temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
    )
    if fields.min_tokens < 0:
        raise ApiError(f"min_tokens must be greater than or equal to 0, got {fields.min_tokens}.")
    if fields.min_tokens > max_tokens:
        raise ApiError(f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {fields.min_tokens}.")
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    if "" in stop:
        raise ApiError("stop cannot contain an empty string.")
    check_logprobs(fields.prompt_logprobs, "prompt_logprobs")
    _check_bias(fields.logit_bias, vocabulary)
    text = text if text is not None else text_of_format(fields, prompt_ids)
    if text is not None and not _is_unicode(text):
        raise ApiError("A value of the answer's prescribed form is not Unicode text")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        stop=stop,
        stop_token_ids=frozenset(fields.stop_token_ids or ()),
        include_stop=fields.include_stop_str_in_output,
        skip_special=fields.skip_special_tokens,
        seed=fields.seed,
        temperature=temperature,
        text=text,
    )


def check_numbers(
    *,
    temperature: float,
    n: int | None = 1,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    repetition_penalty: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
) -> None:
    """ApiError for a number that is out of its range."""
    n = 1 if n is None else n
    if n < 1:
        raise ApiError(f"n must be at least 1, got {n}.")
    if n > N_MAX:
        raise ApiError(f"n must be at most {N_MAX}, got {n}. The twin's own limit; vLLM's is VLLM_MAX_N_SEQUENCES.")
    if n > 1 and temperature == 0:
        raise ApiError(f"n must be 1 when using greedy sampling, got {n}.")
    for name, penalty in (("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)):
        if penalty is not None and not -2 <= penalty <= 2:
            raise ApiError(f"{name} must be in [-2, 2], got {penalty}.")
    if repetition_penalty is not None and not repetition_penalty > 0:
        raise ApiError(f"repetition_penalty must be greater than zero, got {repetition_penalty}.")
    if not math.isfinite(temperature):
        raise _out_of_range("temperature", "be a finite number", temperature)
    if temperature < 0:
        raise _out_of_range("temperature", "be non-negative", temperature)
    if temperature > 2:
        raise _out_of_range("temperature", "be in [0, 2]", temperature)
    if top_p is not None and not 0 < top_p <= 1:
        raise _out_of_range("top_p", "be in (0, 1]", top_p)
    if top_k is not None and top_k < -1:
        raise ApiError(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ApiError(f"min_p must be in [0, 1], got {min_p}.")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _out_of_range(name: str, must: str, value: float) -> ApiError:
    return ApiError(f"{name} must {must}, got {value}.", param=name, value=value)


def _check_bias(bias: dict[str, float] | None, vocabulary: int) -> None:
    """Checked only: a bias changes nothing in the twin's text."""
    outside: list[int] = []
    odd: list[str] = []
    for key in bias or ():
        try:
            token_id = int(key)
        except ValueError:
            odd.append(key)
            continue
        if not 0 <= token_id < vocabulary:
            outside.append(token_id)
    if odd:
        raise ApiError(
            f"logit_bias contains key(s) that cannot be converted to integer token IDs: {odd}",
            param="logit_bias",
            value=odd,
        )
    if outside:
        raise ApiError(
            f"token_id(s) {outside} in logit_bias contain out-of-vocab token ids. Vocabulary size: {vocabulary}",
            param="logit_bias",
            value=outside,
        )
