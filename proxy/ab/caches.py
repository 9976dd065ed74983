"""Can an engine's prefix cache be emptied, and is it done? vLLM's `POST /reset_prefix_cache`, in its developer mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from backends.vllm.fetch import FetchFailed, fetch
from scheduler.events import PrefixCacheReset

if TYPE_CHECKING:
    from proxy.engines import Engine

PATH = "/reset_prefix_cache?reset_running_requests=true"
"""Else vLLM refuses while anybody's blocks are in use. Calls that run are computed again: in the wash-out, which is
not counted."""
TIMEOUT_SECONDS = 5.0
HOW = "vLLM has it where VLLM_SERVER_DEV_MODE=1 is set"


async def reset(engine: Engine) -> PrefixCacheReset:
    """Ask for it; says what came of it."""
    path = engine.path_prefix.decode("ascii") + PATH
    try:
        status, body = await fetch(engine.pool, path, engine.own_fields, TIMEOUT_SECONDS, "POST")
    except FetchFailed as failed:
        return PrefixCacheReset(engine.name, False, str(failed))
    if status >= 300:
        return PrefixCacheReset(engine.name, False, f"{status} for POST /reset_prefix_cache; {HOW}")
    try:
        done = orjson.loads(body).get("success") is True
    except (orjson.JSONDecodeError, AttributeError):
        return PrefixCacheReset(engine.name, False, "its version does not say whether it was done")
    return PrefixCacheReset(engine.name, done, "" if done else "it says that it was not done")
