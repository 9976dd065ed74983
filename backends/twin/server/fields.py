"""Which fields may a request have, and of which types? What is not listed here is ignored, as vLLM ignores it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from backends.twin.server.errors import ApiError

TokenId = Annotated[int, Field(ge=0)]
Stop = Annotated[list[str], Field(max_length=4)]


Prompt = list[TokenId] | list[list[TokenId]] | str | list[str]


class Fields(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="ignore", from_attributes=True)


class StreamOptions(Fields):
    """What a stream says of usage."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchema(Fields):
    """The schema of an answer in JSON."""

    name: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(Fields):
    """What form an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Fields):
    """vLLM's own way to ask for a form."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None


class SamplingFields(Fields):
    """What chat and completions have in common."""

    model: str | None = None
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = 1
    presence_penalty: float | None = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    prompt_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int = 0
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    use_beam_search: bool = False


class FunctionField(Fields):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolField(Fields):
    """A tool of a chat request."""

    type: Literal["function"] = "function"
    function: FunctionField


class ContentPart(Fields):
    """A part of a message."""

    type: str = "text"
    text: str | None = None


class CalledFunction(Fields):
    """A call that a model made before."""

    name: str
    arguments: str | None = None


class ToolCallField(Fields):
    """The same with its id."""

    id: str | None = None
    function: CalledFunction


class Message(Fields):
    """A message of a chat."""

    role: str
    content: str | list[ContentPart | str] | None = None
    name: str | None = None
    tool_calls: list[ToolCallField] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_content(cls, data: Any) -> Any:
        if isinstance(data, dict) and "content" in data and data["content"] is None and data.get("role") != "assistant":
            raise PydanticCustomError("string_type", "Input should be a valid string")
        return data


class ChatFields(SamplingFields):
    """/v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    max_completion_tokens: int | None = None
    tools: list[ToolField] | None = None
    tool_choice: str | dict[str, Any] | None = None
    echo: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False

    @model_validator(mode="before")
    @classmethod
    def _can_be_read(cls, data: Any) -> Any:
        messages = data.get("messages", ()) if isinstance(data, dict) else ()
        if messages is None or isinstance(messages, int | float):
            raise ApiError(f"'{type(messages).__name__}' object is not iterable")
        return data


class CompletionFields(SamplingFields):
    """/v1/completions."""

    prompt: Prompt | None = None
    prompt_embeds: Any = None
    echo: bool | None = False
    logprobs: int | None = None
    max_tokens: int | None = 16
    suffix: str | None = None
    add_special_tokens: bool = True


class ResponsesFields(Fields):
    """/v1/responses."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    background: bool | None = False
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str = "auto"
    store: bool | None = True
    stream: bool | None = False
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = "auto"
    tools: list[dict[str, Any]] = Field(default_factory=list)
    top_logprobs: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    truncation: Literal["auto", "disabled"] | None = "disabled"
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    request_id: str | None = None
    priority: int = 0
    cache_salt: str | None = None


class EmbeddingFields(Fields):
    """/v1/embeddings."""

    model: str | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    priority: int = 0
    cache_salt: str | None = None


class TokenizeTextFields(Fields):
    """/tokenize of a text."""

    model: str | None = None
    prompt: str
    return_token_strs: bool | None = False


class TokenizeChatFields(Fields):
    """/tokenize of a chat."""

    model: str | None = None
    messages: list[Message]
    tools: list[ToolField] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False


class TokenizeFields(TokenizeTextFields):
    """What a body lacks that is neither."""

    messages: list[Message]


class DetokenizeFields(Fields):
    """/detokenize."""

    model: str | None = None
    tokens: list[TokenId]
