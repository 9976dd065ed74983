"""openai-python talks through the gateway and gets what it gets from vLLM: sync, async, streamed, raw."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionUserMessageParam

from tests.vllm.children import MAX_MODEL_LEN, SERVED_NAME
from tests.vllm.wire import wait_idle

MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Tell me about os.path"}]
ASK: dict[str, Any] = {"model": SERVED_NAME, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
DRAWN = {"id", "created", "created_at", "completed_at"}
"""What differs between two equal answers."""


def client(base_url: str, prefix: str = "", **options: Any) -> OpenAI:
    """A client as users make it; no retries, so that an error is seen."""
    return OpenAI(base_url=f"{base_url}{prefix}/v1", api_key="none", max_retries=0, timeout=60, **options)


def async_client(base_url: str) -> AsyncOpenAI:
    """The same for asyncio."""
    return AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60)


def plain(value: Any) -> Any:
    """A model as JSON's types, without ids and times."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in DRAWN}
    return [plain(item) for item in value] if isinstance(value, list) else value


def stream_text(base_url: str, **more: Any) -> tuple[str, list[Any]]:
    """Text and the usages of one streamed chat."""
    with client(base_url).chat.completions.create(**ASK, stream=True, **more) as chunks:
        received = list(chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in received if chunk.choices)
    return text, [plain(chunk.usage) for chunk in received if chunk.usage]


def test_chat(engine: str, gateway: str) -> None:
    direct, through = (plain(client(base).chat.completions.create(**ASK)) for base in (engine, gateway))
    assert through == direct
    assert through["choices"][0]["message"]["content"]


def test_chat_streamed(engine: str, gateway: str) -> None:
    direct, through = stream_text(engine), stream_text(gateway)
    assert through == direct
    assert through[0] and not through[1]


def test_chat_streamed_with_usage(engine: str, gateway: str) -> None:
    options = {"stream_options": {"include_usage": True}}
    direct, through = stream_text(engine, **options), stream_text(gateway, **options)
    assert through == direct
    assert [usage["completion_tokens"] for usage in through[1]] == [8]


def test_stream_helper(engine: str, gateway: str) -> None:
    """`chat.completions.stream` puts the answer together itself, is stricter about events, and refuses a cut answer."""
    whole = client(engine).chat.completions.create(**ASK).choices[0].message.content
    assert whole
    finals = []
    for base in (engine, gateway):
        with client(base).chat.completions.stream(**ASK, stop=[whole[-1]]) as events:
            kinds = {event.type for event in events}
            finals.append((kinds, plain(events.get_final_completion())))
    assert finals[1] == finals[0]


def test_completions(engine: str, gateway: str) -> None:
    asked: dict[str, Any] = {"model": SERVED_NAME, "prompt": "import os", "max_tokens": 8, "temperature": 0}
    direct, through = (plain(client(base).completions.create(**asked)) for base in (engine, gateway))
    assert through == direct
    texts = ["".join(c.choices[0].text for c in client(b).completions.create(**asked, stream=True)) for b in (gateway,)]
    assert texts == [direct["choices"][0]["text"]]


def test_responses(engine: str, gateway: str) -> None:
    asked: dict[str, Any] = {"model": SERVED_NAME, "input": "import os", "max_output_tokens": 8, "temperature": 0}
    direct, through = (plain(client(base).responses.create(**asked)) for base in (engine, gateway))
    assert through == direct
    kinds, texts = [], []
    for base in (engine, gateway):
        received = list(client(base).responses.create(**asked, stream=True))
        kinds.append([event.type for event in received if event.type != "response.output_text.delta"])
        texts.append("".join(event.delta for event in received if event.type == "response.output_text.delta"))
    assert kinds[1] == kinds[0]
    assert texts[1] == texts[0] == direct["output"][0]["content"][0]["text"]


def test_models(engine: str, gateway: str) -> None:
    direct, through = ([model.model_dump() for model in client(base).models.list()] for base in (engine, gateway))
    assert [model["id"] for model in through] == [SERVED_NAME]
    assert through[0].keys() == direct[0].keys()
    assert through[0]["max_model_len"] == direct[0]["max_model_len"] == MAX_MODEL_LEN


def test_async(engine: str, gateway: str) -> None:
    """Eight at once on one client, streamed and not, each its own answer."""

    async def answers(base_url: str) -> list[Any]:
        async def whole(content: str) -> str | None:
            messages: Any = [{"role": "user", "content": content}]
            answer: ChatCompletion = await api.chat.completions.create(**ASK | {"messages": messages})
            return answer.choices[0].message.content

        async def streamed(content: str) -> str:
            messages: Any = [{"role": "user", "content": content}]
            chunks = await api.chat.completions.create(**ASK | {"messages": messages}, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        async with async_client(base_url) as api:
            asked = [f"number {index}" for index in range(4)]
            return await asyncio.gather(*map(whole, asked), *map(streamed, asked))

    direct, through = asyncio.run(answers(engine)), asyncio.run(answers(gateway))
    assert through == direct
    assert through[:4] == through[4:]


def test_raw_response(engine: str, gateway: str) -> None:
    direct, through = (client(base).chat.completions.with_raw_response.create(**ASK) for base in (engine, gateway))
    assert through.status_code == direct.status_code == 200
    assert plain(through.parse()) == plain(direct.parse())
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert through.parse().id == f"chatcmpl-{through.headers['x-request-id']}"


def test_workflow_named_by_headers(gateway: str) -> None:
    extra = {"x-workflow-id": "wf-headers", "x-workflow-node": "draft"}
    raw = client(gateway).chat.completions.with_raw_response.create(**ASK, extra_headers=extra)
    assert raw.headers["x-workflow-id"] == "wf-headers"
    assert raw.headers["x-workflow-node"] == "draft"
    assert raw.headers["x-joulegate-decision"]


def test_workflow_named_in_the_body(engine: str, gateway: str) -> None:
    workflow = {"id": "wf-body", "node": "review", "after": ["draft"], "class": "batch", "final": True}
    raw = client(gateway).chat.completions.with_raw_response.create(**ASK, extra_body={"workflow": workflow})
    assert raw.headers["x-workflow-id"] == "wf-body"
    assert raw.headers["x-workflow-node"] == "review"
    assert raw.headers["x-joulegate-decision"]
    assert plain(raw.parse()) == plain(client(engine).chat.completions.create(**ASK))


def test_workflow_named_by_the_base_url(engine: str, gateway: str) -> None:
    raw = client(gateway, "/w/my-id").chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-workflow-id"] == "my-id"
    assert plain(raw.parse()) == plain(client(engine).chat.completions.create(**ASK))
    with client(gateway, "/w/my-id").chat.completions.with_streaming_response.create(**ASK, stream=True) as streamed:
        assert streamed.headers["x-workflow-id"] == "my-id"
        assert b"".join(streamed.iter_bytes()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"temperature": -3}, openai.BadRequestError),
        ({"max_tokens": 10 * MAX_MODEL_LEN}, openai.BadRequestError),
        ({"model": "no-such-model"}, openai.NotFoundError),
    ],
    ids=["temperature", "max-tokens", "model"],
)
def test_errors_are_raised_as_from_vllm(
    engine: str, gateway: str, wrong: dict[str, Any], kind: type[openai.APIStatusError]
) -> None:
    raised = []
    for base in (engine, gateway):
        with pytest.raises(kind) as caught:
            client(base).chat.completions.create(**ASK | wrong)
        raised.append(caught.value)
    direct, through = raised
    assert through.status_code == direct.status_code
    assert isinstance(through.body, dict) and through.body["message"]
    if "model" not in wrong:
        assert through.body == direct.body


def test_stream_closed_early_frees_the_engine(gateway: str, idle_engine: str) -> None:
    long = ASK | {"max_tokens": MAX_MODEL_LEN - 200}
    chunks = client(gateway).chat.completions.create(**long, stream=True, extra_body={"ignore_eos": True})
    next(iter(chunks))
    chunks.close()
    wait_idle(idle_engine, 5)
