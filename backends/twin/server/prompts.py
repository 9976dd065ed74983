r"""How does a conversation become one prompt? The twin's chat template:

    <|im_start|>ROLE\nTEXT<|im_end|>\n      for each message
    <|im_start|>assistant\n                 where the answer begins

Tools come first, as a system message with their JSON; calls that a message made follow its text in Hermes' form.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backends.twin.server.errors import ApiError
from backends.twin.server.forms import tool_call_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.twin.server.fields import Message, ToolField


def rendered(
    messages: Sequence[Message],
    model_name: str,
    *,
    tools: Sequence[ToolField] = (),
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """The prompt. ApiError where vLLM refuses to make one."""
    if not messages:
        raise ApiError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if continue_final_message and add_generation_prompt:
        raise ApiError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    parts: list[str] = []
    if tools:
        described = "\n".join(json.dumps(tool.function.model_dump(exclude_none=True)) for tool in tools)
        parts.append(f"<|im_start|>system\n# Tools\n{described}<|im_end|>\n")
    for at, message in enumerate(messages):
        text = text_of(message, model_name)
        for call in message.tool_calls or ():
            text += tool_call_text(call.function.name, call.function.arguments or "{}")
        end = "" if continue_final_message and at == len(messages) - 1 else "<|im_end|>\n"
        parts.append(f"<|im_start|>{message.role}\n{text}{end}")
    if add_generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def text_of(message: Message, model_name: str) -> str:
    """A message's text; ApiError if it has anything else in it."""
    content = message.content
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.type in {"text", "input_text", "output_text", "refusal", "thinking"}:
            texts.append(part.text or "")
        elif part.type in {"image_url", "input_image", "input_audio", "audio_url", "video_url", "image_pil"}:
            raise ApiError(f"{model_name} is not a multimodal model")
        else:
            raise ApiError(f"Unknown part type: {part.type}")
    return "\n".join(texts)
