"""What do all routes share? The model's name, its tokenizer, the running engine, and how an answer is written."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from backends.twin.content import Run, runs_of_tokens
from backends.twin.server.answers import answer, tokens_at_most
from backends.twin.server.errors import ApiError, checked, read_json
from backends.twin.server.runtime import Group, Planned
from backends.twin.server.sampling import check_prompt_length

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.twin.calibration import Calibration
    from backends.twin.server.answers import Sampling
    from backends.twin.server.errors import Model
    from backends.twin.server.metrics import Observed
    from backends.twin.server.runtime import Runtime
    from backends.twin.server.tokenizer import Tokenizer

VLLM_VERSION = "0.32.0"
"""Whose API this is."""
FINGERPRINT = f"vllm-{VLLM_VERSION}-twin"
PLANNED_TOKENS_MAX = 500_000
"""Output tokens of one request, over all its sequences: they are made when it is submitted."""
_ID = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(slots=True)
class Service:
    """One served model."""

    runtime: Runtime
    tokenizer: Tokenizer
    observed: Observed
    model_name: str
    max_queued: int | None = None
    """With more sequences than this, running ones included, requests are refused."""
    sleep_mode: bool = False
    """vLLM's --enable-sleep-mode, in its developer mode."""
    wake_seconds: float = 0.0
    """That waking up takes, in simulated seconds."""
    load: int = 0
    """Requests being served now."""

    @property
    def calibration(self) -> Calibration:
        """Of the engine."""
        return self.runtime.engine.calibration

    @property
    def max_model_len(self) -> int:
        """Prompt and output together, in tokens."""
        return self.calibration.model.max_model_len

    async def fields(self, request: web.Request, model: type[Model]) -> Model:
        """The request's body. ApiError or DetailError for what it should not be."""
        if request.method == "POST" and request.body_exists:
            kind = request.content_type
            if kind != "application/json" and not kind.endswith("+json"):
                raise ApiError(
                    "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                    kind="Bad Request",
                )
        return checked(model, read_json(await request.read()))

    def check_model(self, name: str | None) -> None:
        """ApiError for a model that is not this one."""
        if name and name != self.model_name:
            raise ApiError(
                f"The model `{name}` does not exist. Valid aliases: {self.model_name}.",
                status=404,
                kind="NotFoundError",
                param="model",
            )

    def prompt_ids(self, prompt: str | Sequence[int], *, truncate: int | None = None) -> list[int]:
        """A prompt's token ids, not longer than the model. ApiError otherwise."""
        limit = self.max_model_len
        if truncate is not None:
            if truncate > limit:
                raise ApiError(
                    f"truncate_prompt_tokens={truncate} cannot be greater than max_model_len = {limit}. Please request"
                    " a smaller truncation size.",
                    param="truncate_prompt_tokens",
                    value=truncate,
                )
            truncate = limit if truncate == -1 else truncate
        if isinstance(prompt, str):
            try:
                ids = self.tokenizer.encode(prompt, None if truncate is not None else limit + 1)
            except UnicodeEncodeError:
                raise ApiError(
                    "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]"
                ) from None
        else:
            ids = list(prompt)
            if ids and max(ids) >= self.tokenizer.size:
                raise ApiError(f"Token id {max(ids)} is out of vocabulary")
        if truncate is not None:
            ids = ids[len(ids) - min(truncate, len(ids)) :]
        check_prompt_length(len(ids), limit, cut=isinstance(prompt, str))
        if not ids:
            raise ApiError("The decoder prompt cannot be empty")
        return ids

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        *,
        request_id: str,
        n: int = 1,
        priority: int = 0,
        cache_salt: str | None = None,
        streamed: bool = False,
    ) -> Group:
        """Submit n sequences of each prompt: call number p·n + i is the i-th of prompt p."""
        most = n * sum(map(tokens_at_most, samplings))
        if most > PLANNED_TOKENS_MAX:
            raise ApiError(f"Up to {most} output tokens in one request; the twin's limit is {PLANNED_TOKENS_MAX}")
        self._check_queue(len(prompts) * n)
        planned = []
        for ids, sampling in zip(prompts, samplings, strict=True):
            for index in range(n):
                made = answer(self.tokenizer, ids, sampling, index)
                planned.append(
                    Planned(len(ids), made, self._runs(ids, made.token_ids, cache_salt), sampling.max_tokens)
                )
        return self.runtime.start(planned, request_id, priority, Group(streamed, n))

    def _check_queue(self, more: int) -> None:
        """vLLM's own limit, which counts running sequences too."""
        if self.max_queued is None:
            return
        self.runtime.look()
        if len(self.runtime.engine.requests) + more > self.max_queued:
            self.observed.refused += 1
            raise ApiError(
                "The engine is currently busy and cannot accept new requests. Please try again later or on a different"
                " instance.",
                status=503,
                kind="Service Unavailable",
            )

    def _runs(self, prompt_ids: Sequence[int], output_ids: Sequence[int], salt: str | None) -> list[Run]:
        runs = runs_of_tokens([*prompt_ids, *output_ids], self.calibration.engine.block_tokens)
        if salt and runs:  # every block's identity includes those before it
            runs[0] = Run((salt, runs[0].name), 0, 1)
        return runs

    def cached_tokens(self, group: Group) -> int:
        """Of the last prompt, as vLLM says it."""
        return group.calls[-group.n].request.cached_tokens or 0

    def created_cache_tokens(self, group: Group) -> int:
        """Prompt tokens that are in the prefix cache since this call."""
        request, block = group.calls[-group.n].request, self.calibration.engine.block_tokens
        if not self.calibration.engine.prefix_caching:
            return 0
        return max(0, request.prompt_tokens // block * block - (request.cached_tokens or 0))


def public_id(request: web.Request, prefix: str, given: str | None = None) -> str:
    """The id that the client sees: from its X-Request-Id, or its body, or drawn."""
    name = request.headers.get("x-request-id") or given
    return f"{prefix}-{name}" if name else f"{prefix}-{secrets.token_hex(8)}"


def request_id_header(request: web.Request) -> str:
    """What the x-request-id header of the answer says."""
    name = request.headers.get("x-request-id")
    return name if name and _ID.fullmatch(name) else secrets.token_hex(16)


def as_json(data: Any) -> bytes:
    """Compact JSON; what orjson refuses (a lone surrogate, a very large number) is escaped as Python does it."""
    try:
        return orjson.dumps(data)
    except TypeError:
        return json.dumps(data, separators=(",", ":")).encode()


def json_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A whole answer."""
    return web.Response(body=as_json(data), status=status, content_type="application/json", headers=headers)


def unix_seconds() -> int:
    """For `created`."""
    return int(time.time())


class EventStream:
    """Server-sent events to one client."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})

    async def open(self) -> web.StreamResponse:
        """Send the head."""
        await self._response.prepare(self._request)
        return self._response

    async def send(self, *events: Any, name: str | None = None) -> None:
        """Events, in one write."""
        head = b"" if name is None else f"event: {name}\n".encode()
        await self._response.write(b"".join([head + b"data: " + as_json(event) + b"\n\n" for event in events]))

    async def done(self) -> None:
        """OpenAI's last line, then the end."""
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()

    async def end(self) -> None:
        """The end without it."""
        await self._response.write_eof()


class Answering(Protocol):
    """A call that has started: its answer as a whole, or event by event."""

    def whole(self, group: Group) -> dict[str, Any]:
        """When all of it is there."""

    async def stream(self, group: Group, events: EventStream) -> None:
        """As it comes."""


async def play(
    service: Service, request: web.Request, call: Answering, group: Group, *, streamed: bool
) -> web.StreamResponse:
    """Answer a call; whatever happens to its client, its place on the engine is given back."""
    try:
        if not streamed:
            await group.whole()
            return json_answer(call.whole(group))
        events = EventStream(request)
        response = await events.open()
        await call.stream(group, events)
        return response
    finally:
        service.runtime.leave(group)
