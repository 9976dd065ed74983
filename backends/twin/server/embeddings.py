"""/v1/embeddings: vectors in the shape of vLLM's, whose texts are near each other as far as they share tokens."""

from __future__ import annotations

import base64
import hashlib
from array import array
from collections import Counter
from math import sqrt
from typing import TYPE_CHECKING, Any

from backends.twin.server.answers import Sampling
from backends.twin.server.completions import prompts_of
from backends.twin.server.errors import ApiError
from backends.twin.server.fields import EmbeddingFields
from backends.twin.server.service import json_answer, public_id, unix_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from backends.twin.server.service import Service

DIMENSIONS = 1024
PLACES = 8
"""How many components a token moves."""


def embedding(ids: Sequence[int], dimensions: int) -> array[float]:
    """A unit vector that is the same for the same tokens, in whatever order."""
    vector = array("f", bytes(4 * dimensions))
    for token_id, count in Counter(ids).items():
        drawn = hashlib.blake2b(token_id.to_bytes(8), digest_size=4 * PLACES).digest()
        for at in range(0, len(drawn), 4):
            number = int.from_bytes(drawn[at : at + 4])
            vector[(number >> 1) % dimensions] += count if number & 1 else -count
    norm = sqrt(sum(value * value for value in vector)) or 1.0
    return array("f", (value / norm for value in vector))


async def embeddings(service: Service, request: web.Request) -> web.StreamResponse:
    """The route: each text is a prefill."""
    fields = await service.fields(request, EmbeddingFields)
    service.check_model(fields.model)
    dimensions = DIMENSIONS if fields.dimensions is None else fields.dimensions
    if not 1 <= dimensions <= DIMENSIONS:
        raise ApiError(f"dimensions must be from 1 to {DIMENSIONS}, got {dimensions}.", param="dimensions")
    prompts = [service.prompt_ids(prompt) for prompt in prompts_of(fields.input)]
    for ids in prompts:
        if len(ids) >= service.max_model_len:
            raise ApiError(f"An embedding's text may have {service.max_model_len - 1} tokens, this has {len(ids)}")
    name = public_id(request, "embd")
    once = Sampling(max_tokens=1, ignore_eos=True)
    group = service.start(
        prompts, [once] * len(prompts), request_id=name, priority=fields.priority, cache_salt=fields.cache_salt
    )
    try:
        await group.whole()
    finally:
        service.runtime.leave(group)
    data: list[dict[str, Any]] = []
    for index, ids in enumerate(prompts):
        vector = embedding(ids, dimensions)
        as_base64 = fields.encoding_format == "base64"
        shown = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
        data.append({"index": index, "object": "embedding", "embedding": shown})
    tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": name, "object": "list", "created": unix_seconds(), "model": service.model_name}
    return json_answer({**head, "data": data, "usage": usage})
