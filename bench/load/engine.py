"""What is this engine, and what does it keep to? Looked at before anything is played, and said where it falls short."""

from __future__ import annotations

import re
import secrets
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp

from bench.load.playing import Note
from bench.programs import BenchError
from workloads.prompts import PLAIN, chat_body
from workloads.text import WORDS_PER_TOKEN, prose
from workloads.ways.calls import read_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workloads.played import Tokens

LOOK_SECONDS = 120.0
SAMPLE_TOKENS = 4000
PROBE_TOKENS = 24
PREFIX_TOKENS = 600
METRICS = {
    "steps": "vllm:iteration_tokens_total_count",
    "generated_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_share": "vllm:kv_cache_usage_perc",
}
_SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{[^}]*\})? ([^ \n]+)$", re.MULTILINE)


class Engine(NamedTuple):
    """A real engine, or a twin behind HTTP."""

    url: str
    model: str
    headers: Mapping[str, str]
    api_key: str | None
    twin_cards: int | None
    """It is a joulegate twin with so many cards; None: it is not."""
    words_per_token: float
    counters: bool
    """It has vLLM's counters."""
    about: dict[str, Any]
    notes: tuple[Note, ...]


async def look_at(session: aiohttp.ClientSession, url: str, model: str | None, api_key: str | None) -> Engine:
    """BenchError where nobody answers, or not that model."""
    url = url.rstrip("/").removesuffix("/v1")
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    looker = _Looker(session, url, headers)
    status, models = await looker.get("/v1/models")
    if status != 200 or not models.get("data"):
        raise BenchError(f"--engine {url}: has no models to show ({status}: {str(models)[:200]})")
    served = [str(each["id"]) for each in models["data"]]
    if model is not None and model not in served:
        raise BenchError(f"--model {model}: {url} serves {', '.join(served)}")
    looker.model = model or served[0]
    power, power_at = await looker.optional("/power"), monotonic()
    twin_cards = None
    if isinstance(power, dict) and power.get("source") == "simulated":
        twin_cards = int(power.get("gpus") or 1)
    words_per_token = await looker.words_per_token()
    await looker.try_lengths()
    await looker.try_prefix()
    if twin_cards is not None:
        _refuse_other_speeds(url, power, await looker.optional("/power"), monotonic() - power_at)
    counters = (await read_counters(session, url, headers)).get("generated_tokens") is not None
    if not counters:
        looker.note("counters_missing", "the engine shows none of vLLM's counters at /metrics")
    version = await looker.optional("/version")
    about = {
        "kind": "url",
        "url": url,
        "model": looker.model,
        "max_model_len": models["data"][served.index(looker.model)].get("max_model_len"),
        "version": version.get("version") if isinstance(version, dict) else None,
        "simulated": twin_cards is not None,
        "words_per_token": words_per_token,
    }
    return Engine(
        url, looker.model, headers, api_key, twin_cards, words_per_token, counters, about, tuple(looker.notes)
    )


async def look_at_gateway(session: aiohttp.ClientSession, url: str, engine: Engine) -> None:
    """Of one that runs already. BenchError where nobody answers, or it does not serve the engine's model."""
    looker = _Looker(session, url.rstrip("/").removesuffix("/v1"), engine.headers, "--gateway")
    status, models = await looker.get("/v1/models")
    served = [str(each["id"]) for each in models.get("data") or []] if status == 200 else []
    if engine.model not in served:
        raise BenchError(
            f"--gateway {url}: does not serve {engine.model}: {status}: {', '.join(served) or 'no models'}"
        )


def _refuse_other_speeds(url: str, before: Any, after: Any, seconds: float) -> None:
    """A twin whose seconds are not the clock's has joules that do not fit the times. BenchError."""
    speed = (after["time_seconds"] - before["time_seconds"]) / seconds
    if not 0.5 < speed < 2:
        raise BenchError(
            f"--engine {url}: this twin runs at about {speed:.1f} × real time, so its joules would not fit the times:"
            " start it with --speed 1, or play in virtual time (--engine twin)"
        )


class _Looker:
    def __init__(
        self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], option: str = "--engine"
    ) -> None:
        self._option = option
        self._session = session
        self._url = url
        self._headers = headers
        self._timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
        self.model = ""
        self.notes: list[Note] = []

    def note(self, code: str, text: str) -> None:
        self.notes.append(Note(code, text))

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and document. BenchError where nobody answers."""
        try:
            async with self._session.get(self._url + path, headers=self._headers, timeout=self._timeout) as answer:
                return answer.status, await answer.json(content_type=None)
        except ValueError:
            return 0, {}
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            raise BenchError(
                f"{self._option} {self._url}: nobody answers: {str(fault) or type(fault).__name__}"
            ) from None

    async def optional(self, path: str) -> Any:
        """A document that not every engine has."""
        status, document = await self.get(path)
        return document if status == 200 else None

    async def post(self, path: str, body: Any) -> Any:
        """A document; None for an error."""
        try:
            async with self._session.post(
                self._url + path, json=body, headers=self._headers, timeout=self._timeout
            ) as answer:
                return await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def words_per_token(self) -> float:
        """Of the workloads' prose, by the engine's own tokenizer."""
        text = prose("tokenizer sample", SAMPLE_TOKENS)
        found = await self.post("/tokenize", {"model": self.model, "prompt": text, "add_special_tokens": False})
        count = found.get("count") if isinstance(found, dict) else None
        if not count:
            self.note("tokenizer_missing", f"no /tokenize here: {WORDS_PER_TOKEN} words a token are assumed")
            return WORDS_PER_TOKEN
        return len(text.split()) / int(count)

    async def _tokens(self, prompt: str, output_tokens: int) -> Tokens:
        document = await self.post("/v1/chat/completions", chat_body(self.model, prompt, output_tokens, PLAIN))
        try:
            return read_answer(document)[1]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise BenchError(f"--engine {self._url}: does not answer a chat: {str(document)[:200]}") from None

    async def try_lengths(self) -> None:
        """Whether an answer is as long as it is told to be."""
        tokens = await self._tokens(prose(secrets.token_hex(8), 40), PROBE_TOKENS)
        if tokens.output is None:
            self.note("usage_missing", "answers do not say how many tokens they have")
        elif tokens.output != PROBE_TOKENS:
            self.note(
                "lengths_ignored",
                f"asked for {PROBE_TOKENS} tokens exactly, the engine made {tokens.output}: policies will not do"
                " the same work",
            )

    async def try_prefix(self) -> None:
        """Whether the second of two equal beginnings is found in the cache, and whether it says so."""
        head = prose(secrets.token_hex(8), PREFIX_TOKENS)
        first = await self._tokens(f"{head}\n\nOne.", 1)
        if first.cached is not None and first.cached > PREFIX_TOKENS // 2:
            self.note(
                "texts_alike",
                f"of a text that was never sent, {first.cached} tokens were cached: to the model's tokenizer different"
                " texts are the same, so prompts cost next to nothing here",
            )
        tokens = await self._tokens(f"{head}\n\nTwo.", 1)
        if tokens.cached is None:
            self.note(
                "cached_tokens_missing",
                "the engine does not say which prompt tokens were cached (vllm serve --enable-prompt-tokens-details)",
            )
        elif tokens.cached == 0:
            self.note("prefix_not_shared", f"of {PREFIX_TOKENS} tokens in common with the call before none was cached")


async def read_counters(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> dict[str, float]:
    """METRICS that the engine has now, summed over labels; what it has not is not there."""
    try:
        async with session.get(f"{url}/metrics", headers=headers, timeout=aiohttp.ClientTimeout(total=5.0)) as answer:
            text = await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, OSError):
        return {}
    wanted = {name: short for short, name in METRICS.items()}
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        if name in wanted:
            found[wanted[name]] = found.get(wanted[name], 0.0) + float(value)
    return found
