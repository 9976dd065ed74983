"""/v1/responses, without a store, as vLLM is by default: no previous_response_id, no background, nothing to fetch."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from backends.twin.server.chat import ChosenTool
from backends.twin.server.errors import ApiError, bad_parameter, checked
from backends.twin.server.fields import FunctionField, Message, ResponsesFields, SamplingFields, ToolField
from backends.twin.server.forms import json_of, seeded
from backends.twin.server.logprobs import chat_logprobs
from backends.twin.server.prompts import rendered
from backends.twin.server.sampling import check_logprobs, max_tokens_of, sampling_of
from backends.twin.server.service import EventStream, play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from backends.twin.server.runtime import Group
    from backends.twin.server.service import Service

LOGPROBS_INCLUDED = "message.output_text.logprobs"


def not_found(response_id: str) -> ApiError:
    """Nothing is stored, so nothing is found."""
    return ApiError(
        f"Response with id '{response_id}' not found.", status=404, kind="invalid_request_error", param="response_id"
    )


def messages_of(fields: ResponsesFields) -> list[Message]:
    """The conversation. ApiError for items that are not part of one."""
    messages = [] if fields.instructions is None else [Message(role="system", content=fields.instructions)]
    if isinstance(fields.input, str):
        return [*messages, Message(role="user", content=fields.input)]
    for at, item in enumerate(fields.input):
        kind = item.get("type", "message")
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            data: dict[str, Any] = {"role": "assistant", "tool_calls": [{"function": function}]}
        elif kind == "function_call_output":
            output = item.get("output")
            data = {"role": "tool", "content": output if isinstance(output, str) else str(output)}
        elif kind == "reasoning":
            continue
        elif kind == "message":
            data = item
        else:
            raise bad_parameter(f"input.{at}: unknown type {kind!r}", "input")
        messages.append(checked(Message, data, ("input", at)))
    return messages


class ResponsesCall:
    """One request on its way."""

    def __init__(self, service: Service, fields: ResponsesFields) -> None:
        self.service, self.fields = service, fields
        self.id = fields.request_id or f"resp_{secrets.token_hex(8)}"
        self.item_id = f"msg_{secrets.token_hex(8)}"
        self.created = int(time.time())
        self._events = 0
        _check_store(fields)
        service.check_model(fields.model)
        self.tools = [_tool(tool, at) for at, tool in enumerate(fields.tools) if tool.get("type") == "function"]
        prompt = rendered(messages_of(fields), service.model_name, tools=self.tools)
        self.prompt_ids = service.prompt_ids(prompt)
        max_tokens = max_tokens_of(
            fields.max_output_tokens, len(self.prompt_ids), service.max_model_len, "max_output_tokens"
        )
        self.logprobs_wanted = LOGPROBS_INCLUDED in (fields.include or ())
        check_logprobs(fields.top_logprobs, "top_logprobs")
        self.tool = self._chosen_tool()
        self.sampling = sampling_of(
            _sampling_fields(fields),
            max_tokens,
            self.prompt_ids,
            service.tokenizer.size,
            self.tool.text if self.tool else None,
        )
        self.temperature = self.sampling.temperature

    def _chosen_tool(self) -> ChosenTool | None:
        choice = self.fields.tool_choice
        named = choice.get("name") if isinstance(choice, dict) else None
        if named is None and choice != "required":
            return None
        tools = [tool.function for tool in self.tools if named in {None, tool.function.name}]
        if not tools:
            raise bad_parameter(
                "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
            )
        schema = tools[0].parameters or {"type": "object", "properties": {}}
        return ChosenTool(tools[0].name, json_of(schema, seeded(self.prompt_ids, tools[0].name)))

    def start(self, *, streamed: bool) -> Group:
        """Submit its sequence."""
        fields = self.fields
        return self.service.start(
            [self.prompt_ids],
            [self.sampling],
            request_id=self.id,
            priority=fields.priority,
            cache_salt=fields.cache_salt,
            streamed=streamed,
        )

    # --- the answer's parts ---

    def body(self, status: str, output: list[dict[str, Any]], group: Group | None = None) -> dict[str, Any]:
        """The response; with a group, finished."""
        fields, made = self.fields, group.calls[0].answer if group else None
        cut = made is not None and made.finish_reason == "length"
        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": fields.instructions,
            "metadata": fields.metadata,
            "model": self.service.model_name,
            "object": "response",
            "output": output,
            "parallel_tool_calls": fields.parallel_tool_calls,
            "temperature": self.temperature,
            "tool_choice": self._shown_choice(),
            "tools": [_shown_tool(tool) for tool in fields.tools],
            "top_p": 1.0 if fields.top_p is None else fields.top_p,
            "background": fields.background,
            "max_output_tokens": self.sampling.max_tokens,
            "max_tool_calls": fields.max_tool_calls,
            "previous_response_id": fields.previous_response_id,
            "prompt": fields.prompt,
            "reasoning": fields.reasoning,
            "service_tier": fields.service_tier,
            "status": "incomplete" if cut else status,
            "text": _shown_text(fields.text),
            "top_logprobs": fields.top_logprobs if self.logprobs_wanted else None,
            "truncation": fields.truncation,
            "usage": None if group is None else self._usage(group),
            "user": fields.user,
            "presence_penalty": fields.presence_penalty or 0.0,
            "frequency_penalty": fields.frequency_penalty or 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _shown_choice(self) -> Any:
        choice = self.fields.tool_choice
        if isinstance(choice, dict):
            return dict(sorted(choice.items()))
        return choice if self.fields.tools else "none"

    def _usage(self, group: Group) -> dict[str, Any]:
        prompt, output = len(self.prompt_ids), group.calls[0].request.output_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": self.service.cached_tokens(group),
                "cache_write_tokens": self.service.created_cache_tokens(group),
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": output,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + output,
        }

    def _logprobs(self, ids: Sequence[int], start: int) -> list[dict[str, Any]] | None:
        if not self.logprobs_wanted:
            return None
        rows = chat_logprobs(self.service.tokenizer, ids, start, self.fields.top_logprobs)["content"]
        return [{**_in_order(row), "top_logprobs": [_in_order(top) for top in row["top_logprobs"]]} for row in rows]

    def part(self, text: str, ids: Sequence[int]) -> dict[str, Any]:
        """The text of a message."""
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": self._logprobs(ids, 0)}

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """A message as an output item."""
        head = {"id": self.item_id, "content": content, "role": "assistant", "status": status}
        return {**head, "type": "message", "phase": None}

    def function_call(self, tool: ChosenTool, status: str, arguments: str) -> dict[str, Any]:
        """A call as an output item."""
        return {
            "arguments": arguments,
            "call_id": tool.id,
            "name": tool.name,
            "type": "function_call",
            "id": self.item_id.replace("msg_", "fc_"),
            "async": None,
            "caller": None,
            "namespace": None,
            "status": status,
        }

    def whole(self, group: Group) -> dict[str, Any]:
        """The answer's body when the sequence is finished."""
        made = group.calls[0].answer
        if self.tool is not None and made.text == self.tool.text:
            output = self.function_call(self.tool, "completed", self.tool.arguments)
        else:
            output = self.message("completed", [self.part(made.text, made.token_ids)])
        return self.body("completed", [output], group)

    # --- a stream ---

    async def _say(self, events: EventStream, kind: str, **more: Any) -> None:
        data = dict(sorted({**more, "sequence_number": self._events, "type": kind}.items()))
        self._events += 1
        await events.send(data, name=kind)

    async def stream(self, group: Group, events: EventStream) -> None:
        """vLLM's events, in its order."""
        started = self.body("in_progress", [])
        await self._say(events, "response.created", response=started)
        await self._say(events, "response.in_progress", response=started)
        if self.tool is not None:
            item = await self._stream_tool(group, events, self.tool)
        else:
            item = await self._stream_text(group, events)
        await self._say(events, "response.output_item.done", item=item, output_index=0)
        await self._say(events, "response.completed", response=self.body("completed", [item], group))
        await events.end()

    async def _stream_text(self, group: Group, events: EventStream) -> dict[str, Any]:
        call, made = group.calls[0], group.calls[0].answer
        place = {"item_id": self.item_id, "output_index": 0}
        before = 0
        while await group.news():
            if not before:
                added = self.message("in_progress", [])
                await self._say(events, "response.output_item.added", item=added, output_index=0)
                empty = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
                await self._say(events, "response.content_part.added", content_index=0, part=empty, **place)
            new = made.text[made.shown(before) : made.shown(call.ready)]
            if new:
                rows = self._logprobs(made.token_ids[before : call.ready], before) or []
                await self._say(
                    events,
                    "response.output_text.delta",
                    content_index=0,
                    delta=new,
                    logprobs=[_without_bytes(row) for row in rows],
                    **place,
                )
            before = call.ready
        await self._say(events, "response.output_text.done", content_index=0, logprobs=[], text=made.text, **place)
        part = self.part(made.text, made.token_ids)
        await self._say(events, "response.content_part.done", content_index=0, part=part, **place)
        return self.message("completed", [part])

    async def _stream_tool(self, group: Group, events: EventStream, tool: ChosenTool) -> dict[str, Any]:
        call, made = group.calls[0], group.calls[0].answer
        place = {"item_id": self.item_id.replace("msg_", "fc_"), "output_index": 0}
        before, added = "", False
        while await group.news():
            shown = made.shown(call.ready)
            if not added and (shown >= tool.arguments_at or call.finished):
                added = True
                item = self.function_call(tool, "in_progress", "")
                await self._say(events, "response.output_item.added", item=item, output_index=0)
            now = tool.shown_arguments(shown)
            if now != before:
                delta = now[len(before) :]
                await self._say(events, "response.function_call_arguments.delta", delta=delta, **place)
                before = now
        await self._say(events, "response.function_call_arguments.done", arguments=before, name=tool.name, **place)
        return self.function_call(tool, "completed", before)


def _check_store(fields: ResponsesFields) -> None:
    if fields.background and not fields.store:
        raise bad_parameter("background can only be used when `store` is true", "background")
    if fields.previous_response_id is not None:
        raise not_found(fields.previous_response_id)
    if fields.background:
        raise ApiError(
            "This vLLM engine does not support `store=True` and therefore does not support the background mode. To"
            " enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching"
            " the vLLM server.",
            kind="invalid_request_error",
            param="background",
        )


def _tool(tool: dict[str, Any], at: int) -> ToolField:
    return ToolField(function=checked(FunctionField, tool, ("tools", at)))


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    names = ("name", "parameters", "strict", "type", "allowed_callers", "async", "defer_loading")
    return {name: tool.get(name) for name in (*names, "description", "output_schema")}


def _shown_text(text: dict[str, Any] | None) -> dict[str, Any] | None:
    if text is None:
        return None
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        names = ("name", "schema", "type", "description", "strict")
        form = {name: form.get(name) for name in names}
    return {"format": form, "verbosity": text.get("verbosity")}


def _in_order(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("token", "bytes", "logprob")}


def _without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    tops = [{"token": top["token"], "logprob": top["logprob"]} for top in row["top_logprobs"]]
    return {"token": row["token"], "logprob": row["logprob"], "top_logprobs": tops}


def _sampling_fields(fields: ResponsesFields) -> SamplingFields:
    """What it has in common with a chat, in a chat's fields."""
    data = {
        name: getattr(fields, name)
        for name in (
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "stop",
            "temperature",
            "top_p",
            "top_k",
            "ignore_eos",
        )
    }
    form = (fields.text or {}).get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {"name": form.get("name"), "schema": form.get("schema")}
        data["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(form, dict):
        data["response_format"] = {"type": form.get("type")}
    return checked(SamplingFields, data)


async def responses(service: Service, request: web.Request) -> web.StreamResponse:
    """The route."""
    fields = await service.fields(request, ResponsesFields)
    call = ResponsesCall(service, fields)
    group = call.start(streamed=bool(fields.stream))
    return await play(service, request, call, group, streamed=bool(fields.stream))


async def stored_response(service: Service, request: web.Request) -> web.Response:
    """GET /v1/responses/ID and POST /v1/responses/ID/cancel."""
    del service
    raise not_found(request.match_info["response_id"])
