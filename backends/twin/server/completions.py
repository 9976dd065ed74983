"""/v1/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.twin.server.errors import ApiError, bad_parameter
from backends.twin.server.fields import CompletionFields
from backends.twin.server.logprobs import completion_logprobs, prompt_logprobs
from backends.twin.server.sampling import LOGPROBS_MAX, check_before, check_logprobs, max_tokens_of, sampling_of
from backends.twin.server.service import FINGERPRINT, EventStream, play, public_id, unix_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from backends.twin.server.fields import Prompt
    from backends.twin.server.runtime import Call, Group
    from backends.twin.server.service import Service

PROMPTS_MAX = 1024


def prompts_of(prompt: Prompt | None) -> Sequence[str | list[int]]:
    """One or several prompts, as texts or token ids. ApiError for none."""
    if prompt is None or prompt == "":
        raise bad_parameter("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError("You must pass at least one prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > PROMPTS_MAX:
        raise ApiError(f"{len(prompt)} prompts in one request; the twin's limit is {PROMPTS_MAX}", param="prompt")
    return prompt


class CompletionCall:
    """One request on its way."""

    def __init__(self, service: Service, request: web.Request, fields: CompletionFields) -> None:
        self.service, self.fields = service, fields
        self.id = public_id(request, "cmpl", fields.request_id)
        self.created = unix_seconds()
        check_before(fields)
        if fields.prompt_embeds is not None:
            raise bad_parameter("You must set `--enable-prompt-embeds` to input `prompt_embeds`.", "prompt_embeds")
        if fields.logprobs is not None and fields.logprobs < -1:
            check_logprobs(fields.logprobs, "logprobs")
        prompts = prompts_of(fields.prompt)
        service.check_model(fields.model)
        if fields.suffix is not None:
            raise ApiError("suffix is only supported for models with FIM completion rendering", param="suffix")
        self.prompts = [service.prompt_ids(prompt, truncate=fields.truncate_prompt_tokens) for prompt in prompts]
        check_logprobs(fields.logprobs, "logprobs")
        self.echo_alone = bool(fields.echo) and fields.max_tokens == 0
        asked = 1 if self.echo_alone else fields.max_tokens
        self.samplings = [
            sampling_of(fields, max_tokens_of(asked, len(ids), service.max_model_len), ids, service.tokenizer.size)
            for ids in self.prompts
        ]

    def start(self) -> Group:
        """Submit its sequences."""
        fields = self.fields
        return self.service.start(
            self.prompts,
            self.samplings,
            request_id=self.id,
            n=fields.n or 1,
            priority=fields.priority,
            cache_salt=fields.cache_salt,
            streamed=bool(fields.stream),
        )

    @property
    def _top(self) -> int:
        top = self.fields.logprobs or 0
        return LOGPROBS_MAX if top == -1 else top

    def _logprobs(self, prompt: Sequence[int], ids: Sequence[int], start: int, offset: int) -> dict[str, Any] | None:
        """Of output tokens number `start` on; with `prompt`, of its tokens too, in front."""
        if self.fields.logprobs is None:
            return None
        tokens = [*prompt, *ids]
        return completion_logprobs(
            self.service.tokenizer, tokens, self._top, start=start, offset=offset, first_unknown=bool(prompt)
        )

    # --- a whole answer ---

    def whole(self, group: Group) -> dict[str, Any]:
        """The answer's body when all sequences are finished."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.model_name,
            "choices": [self._choice(call, group.n) for call in group.calls],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {
                **self._usage(group),
                "prompt_tokens_details": {
                    "cached_tokens": self.service.cached_tokens(group),
                    "created_cache_tokens": None,
                    "multimodal_tokens": None,
                },
                "completion_tokens_details": None,
            },
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _usage(self, group: Group) -> dict[str, Any]:
        prompt = sum(map(len, self.prompts))
        completion = sum(call.request.output_tokens for call in group.calls)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _choice(self, call: Call, n: int) -> dict[str, Any]:
        fields, made, prompt = self.fields, call.answer, self.prompts[call.index // n]
        echoed = prompt if fields.echo else []
        ids = [] if self.echo_alone else made.token_ids
        text = (self._text(prompt) if fields.echo else "") + ("" if self.echo_alone else made.text)
        asked = fields.prompt_logprobs
        if asked is None and fields.echo and fields.logprobs is not None:
            asked = fields.logprobs
        return {
            "index": call.index,
            "text": text,
            "logprobs": self._logprobs(echoed, ids, 0, 0),
            "finish_reason": made.finish_reason,
            "stop_reason": made.stop_reason,
            "token_ids": made.token_ids if fields.return_token_ids else None,
            "prompt_logprobs": None if asked is None else prompt_logprobs(self.service.tokenizer, prompt, asked),
            "prompt_token_ids": prompt if fields.return_token_ids else None,
            "routed_experts": None,
        }

    def _text(self, prompt: Sequence[int]) -> str:
        given = self.fields.prompt
        return given if isinstance(given, str) else self.service.tokenizer.decode(prompt)

    # --- a stream ---

    async def stream(self, group: Group, events: EventStream) -> None:
        """Chunks as tokens come."""
        fields = self.fields
        options = fields.stream_options
        with_usage = bool(options and options.include_usage)
        each_usage = bool(options and options.continuous_usage_stats) and with_usage
        told = dict.fromkeys(group.calls, 0)
        while news := await group.news():
            chunks = []
            for call in news:
                before, told[call] = told[call], call.ready
                choice = self._delta(call, before, group.n)
                chunk = self._chunk([choice])
                if each_usage:
                    prompt = len(self.prompts[call.index // group.n])
                    chunk["usage"] = {
                        "prompt_tokens": prompt,
                        "total_tokens": prompt + call.ready,
                        "completion_tokens": call.ready,
                    }
                if not with_usage and choice["finish_reason"] is not None:
                    chunk["system_fingerprint"] = FINGERPRINT
                chunks.append(chunk)
            await events.send(*chunks)
        if with_usage:
            usage = self._usage(group)
            usage["prompt_tokens_details"] = {"cached_tokens": self.service.cached_tokens(group)}
            await events.send({**self._chunk([]), "usage": usage, "system_fingerprint": FINGERPRINT})
        await events.done()

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created}
        return {**head, "model": self.service.model_name, "choices": choices}

    def _delta(self, call: Call, before: int, n: int) -> dict[str, Any]:
        fields, made, prompt = self.fields, call.answer, self.prompts[call.index // n]
        first = not before
        ids = [] if self.echo_alone else made.token_ids[before : call.ready]
        echoed = self._text(prompt) if fields.echo else ""
        text = "" if self.echo_alone else made.text[made.shown(before) : made.shown(call.ready)]
        offset = 0 if first else len(echoed) + made.ends[before - 1]
        return {
            "index": call.index,
            "text": echoed + text if first else text,
            "logprobs": self._logprobs(prompt if first and fields.echo else [], ids, before, offset),
            "finish_reason": made.finish_reason if call.finished else None,
            "stop_reason": made.stop_reason if call.finished else None,
            "prompt_token_ids": prompt if first and (fields.return_token_ids or fields.echo) else None,
            "token_ids": ids if fields.return_token_ids else None,
        }


async def completions(service: Service, request: web.Request) -> web.StreamResponse:
    """The route."""
    data = await service.fields(request, CompletionFields)
    call = CompletionCall(service, request, data)
    group = call.start()
    return await play(service, request, call, group, streamed=bool(data.stream))
