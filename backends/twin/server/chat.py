"""/v1/chat/completions."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from backends.twin.server.errors import bad_parameter
from backends.twin.server.fields import ChatFields
from backends.twin.server.forms import json_of, seeded, tool_call_text
from backends.twin.server.logprobs import chat_logprobs, prompt_logprobs
from backends.twin.server.prompts import rendered
from backends.twin.server.sampling import check_before, check_logprobs, max_tokens_of, sampling_of
from backends.twin.server.service import FINGERPRINT, EventStream, play, public_id, unix_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from backends.twin.server.runtime import Call, Group
    from backends.twin.server.service import Service


class ChosenTool:
    """A call of a tool that the answer consists of."""

    def __init__(self, name: str, arguments: str) -> None:
        self.id = f"chatcmpl-tool-{secrets.token_hex(8)}"
        self.name, self.arguments = name, arguments
        self.text = tool_call_text(name, arguments)
        self.arguments_at = self.text.index('"arguments": ') + len('"arguments": ')

    def call_id(self, index: int) -> str:
        """The call's id in choice number `index`."""
        return self.id if not index else f"{self.id}{index:x}"

    def shown_arguments(self, shown: int) -> str:
        """The arguments in the first `shown` characters of the text."""
        return self.arguments[: max(0, shown - self.arguments_at)]


def check_chat(fields: ChatFields) -> None:
    """What vLLM refuses while it reads the body."""
    check_before(fields)
    if fields.top_logprobs:
        if fields.top_logprobs < -1:
            check_logprobs(fields.top_logprobs, "top_logprobs")
        if not fields.logprobs:
            raise bad_parameter("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    _check_tools(fields)


def _check_tools(fields: ChatFields) -> None:
    choice, tools = fields.tool_choice, fields.tools
    if tools is not None and not tools:
        raise bad_parameter(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools"
        )
    if choice is None or choice == "none":
        return
    if not tools:
        raise bad_parameter("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, str):
        if choice not in {"auto", "required"}:
            raise bad_parameter(
                f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are'
                " supported.",
                "tool_choice",
            )
        return
    function = choice.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_parameter(
            f"Invalid value for `function`: `{function}` in `tool_choice`! Correct usage:"
            ' `{"type": "function", "function": {"name": "my_function"}}`',
            "tool_choice.function",
        )
    if function["name"] not in {tool.function.name for tool in tools}:
        raise bad_parameter(
            "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
        )


def chosen_tool(fields: ChatFields, prompt_ids: Sequence[int]) -> ChosenTool | None:
    """The tool that must be called, with arguments that its schema allows: the first if any may be."""
    choice = fields.tool_choice
    if not fields.tools or not (choice == "required" or isinstance(choice, dict)):
        return None
    name = choice["function"]["name"] if isinstance(choice, dict) else fields.tools[0].function.name
    function = next(tool.function for tool in fields.tools if tool.function.name == name)
    schema = function.parameters or {"type": "object", "properties": {}}
    return ChosenTool(name, json_of(schema, seeded(prompt_ids, name)))


class ChatCall:
    """One request on its way: what is asked, and how its answer is put together."""

    def __init__(self, service: Service, request: web.Request, fields: ChatFields) -> None:
        self.service, self.fields = service, fields
        self.id = public_id(request, "chatcmpl", fields.request_id)
        self.created = unix_seconds()
        check_chat(fields)
        service.check_model(fields.model)
        prompt = rendered(
            fields.messages,
            service.model_name,
            tools=() if fields.tool_choice == "none" else fields.tools or (),
            add_generation_prompt=fields.add_generation_prompt,
            continue_final_message=fields.continue_final_message,
        )
        self.role = "assistant" if fields.add_generation_prompt else fields.messages[-1].role
        self.prompt_ids = service.prompt_ids(prompt, truncate=fields.truncate_prompt_tokens)
        if fields.logprobs:
            check_logprobs(fields.top_logprobs, "top_logprobs")
        asked = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
        max_tokens = max_tokens_of(asked, len(self.prompt_ids), service.max_model_len)
        self.tool = chosen_tool(fields, self.prompt_ids)
        text = self.tool.text if self.tool else None
        self.sampling = sampling_of(fields, max_tokens, self.prompt_ids, service.tokenizer.size, text)

    def start(self) -> Group:
        """Submit its sequences."""
        fields = self.fields
        return self.service.start(
            [self.prompt_ids],
            [self.sampling],
            request_id=self.id,
            n=fields.n or 1,
            priority=fields.priority,
            cache_salt=fields.cache_salt,
            streamed=bool(fields.stream),
        )

    def logprobs(self, ids: Sequence[int], start: int) -> dict[str, Any] | None:
        """Of some output tokens, if asked for."""
        if not self.fields.logprobs:
            return None
        top = self.fields.top_logprobs
        return chat_logprobs(self.service.tokenizer, ids, start, 20 if top == -1 else top)

    # --- a whole answer ---

    def whole(self, group: Group) -> dict[str, Any]:
        """The answer's body when all sequences are finished."""
        fields, prompt = self.fields, len(self.prompt_ids)
        completion = sum(call.request.output_tokens for call in group.calls)
        rows = None
        asked = fields.prompt_logprobs if fields.prompt_logprobs is not None else 0 if fields.echo else None
        if asked is not None:
            rows = prompt_logprobs(self.service.tokenizer, self.prompt_ids, asked)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.service.model_name,
            "choices": [self._choice(call) for call in group.calls],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
                "prompt_tokens_details": {**self._prompt_details(group), "multimodal_tokens": None},
                "completion_tokens_details": None,
            },
            "prompt_logprobs": rows,
            "prompt_token_ids": self.prompt_ids if fields.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _prompt_details(self, group: Group) -> dict[str, Any]:
        service = self.service
        return {
            "cached_tokens": service.cached_tokens(group),
            "created_cache_tokens": service.created_cache_tokens(group),
        }

    def _choice(self, call: Call) -> dict[str, Any]:
        made, tool = call.answer, self.tool
        whole_tool = tool is not None and made.text == tool.text
        message: dict[str, Any] = {
            "role": self.role,
            "content": "" if whole_tool else made.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if whole_tool and tool is not None:
            function = {"name": tool.name, "arguments": tool.arguments}
            message["tool_calls"] = [{"id": tool.call_id(call.index), "type": "function", "function": function}]
        message["reasoning"] = None
        return {
            "index": call.index,
            "message": message,
            "logprobs": self.logprobs(made.token_ids, 0),
            "finish_reason": made.finish_reason,
            "stop_reason": made.stop_reason,
            "token_ids": made.token_ids if self.fields.return_token_ids else None,
            "routed_experts": None,
        }

    # --- a stream ---

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created}
        return {**head, "model": self.service.model_name, "choices": choices}

    def _usage(self, completion: int) -> dict[str, Any]:
        prompt = len(self.prompt_ids)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    async def stream(self, group: Group, events: EventStream) -> None:
        """Chunks as tokens come."""
        options = self.fields.stream_options
        with_usage = bool(options and options.include_usage)
        each_usage = bool(options and options.continuous_usage_stats) and with_usage
        told: dict[Call, int] = {}
        while news := await group.news():
            chunks: list[dict[str, Any]] = []
            if not told:
                for call in group.calls:
                    choice = {"index": call.index, "delta": {"role": self.role, "content": ""}}
                    chunk = self._chunk([{**choice, "logprobs": None, "finish_reason": None}])
                    if each_usage:
                        chunk["usage"] = {**self._usage(0), "completion_tokens_details": None}
                    chunk["prompt_token_ids"] = self.prompt_ids if self.fields.return_token_ids else None
                    chunk["prompt_text"] = None
                    chunks.append(chunk)
                    told[call] = 0
            for call in news:
                before, told[call] = told[call], call.ready
                for choice in self._deltas(call, before):
                    chunk = self._chunk([choice])
                    if each_usage:
                        chunk["usage"] = {**self._usage(call.ready), "completion_tokens_details": None}
                    if not with_usage and choice["finish_reason"] is not None:
                        chunk["system_fingerprint"] = FINGERPRINT
                    chunks.append(chunk)
            if chunks:
                await events.send(*chunks)
        if with_usage:
            usage = self._usage(sum(call.request.output_tokens for call in group.calls))
            usage["prompt_tokens_details"] = self._prompt_details(group)
            await events.send({**self._chunk([]), "usage": usage, "system_fingerprint": FINGERPRINT})
        await events.done()

    def _deltas(self, call: Call, before: int) -> list[dict[str, Any]]:
        """The choices' deltas for tokens number `before` … ready − 1 of a sequence."""
        made = call.answer
        deltas: list[dict[str, Any]] = []
        if self.tool is not None and made.text.startswith(self.tool.text[: self.tool.arguments_at]):
            deltas = self._tool_deltas(self.tool, call.index, made.shown(before), made.shown(call.ready))
        elif self.tool is None and (new := made.text[made.shown(before) : made.shown(call.ready)]):
            deltas = [{"content": new}]
        if call.finished and (not deltas or self.tool is not None):
            deltas.append({})
        choices: list[dict[str, Any]] = []
        for at, delta in enumerate(deltas):
            last = call.finished and at == len(deltas) - 1
            ids = made.token_ids[before : call.ready]
            choice = {
                "index": call.index,
                "delta": delta,
                "logprobs": self.logprobs(ids, before) if at == 0 else None,
                "finish_reason": made.finish_reason if last else None,
            }
            if last:
                choice["stop_reason"] = made.stop_reason
            choice["token_ids"] = ids if self.fields.return_token_ids and at == 0 else None
            choices.append(choice)
        return choices

    def _tool_deltas(self, tool: ChosenTool, index: int, before: int, now: int) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if before < tool.arguments_at <= now:
            call = {"id": tool.call_id(index), "type": "function", "index": 0, "function": {"name": tool.name}}
            deltas.append({"content": None, "tool_calls": [call]})
        new = tool.shown_arguments(now)[len(tool.shown_arguments(before)) :]
        if new:
            deltas.append({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": new}}]})
        return deltas


async def chat_completions(service: Service, request: web.Request) -> web.StreamResponse:
    """The route."""
    data = await service.fields(request, ChatFields)
    call = ChatCall(service, request, data)
    group = call.start()
    return await play(service, request, call, group, streamed=bool(data.stream))
