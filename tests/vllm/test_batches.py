"""openai-python's files and batches, unmodified, against a gateway in front of a real vLLM."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.vllm.children import SERVED_NAME
from tests.vllm.test_openai_python import async_client, client, plain

ENDED = {"completed", "failed", "expired", "cancelled"}
BATCH_SECONDS = 120.0


def jsonl(endpoint: str, **bodies: dict[str, Any]) -> bytes:
    """An input file: custom_id → body."""
    lines = [
        {"custom_id": name, "method": "POST", "url": endpoint, "body": {"model": SERVED_NAME, **body}}
        for name, body in bodies.items()
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def chat(content: str, **more: Any) -> dict[str, Any]:
    """A short chat, the same every time."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **more}


def ended(api: openai.OpenAI, batch: Batch) -> Batch:
    """Poll as users do."""
    until = time.monotonic() + BATCH_SECONDS
    while batch.status not in ENDED:
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = api.batches.retrieve(batch.id)
    return batch


def results(api: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """A file of results by custom_id."""
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in api.files.content(file_id).text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def test_chats(engine: str, gateway: str) -> None:
    """The answers are those that vLLM gives directly, and the usage is their sum."""
    api = client(gateway)
    asked = {f"ask-{index}": chat(f"Tell me about number {index}") for index in range(12)}
    file = api.files.create(file=("chats.jsonl", jsonl("/v1/chat/completions", **asked)), purpose="batch")
    assert file.purpose == "batch" and file.filename == "chats.jsonl" and file.status == "processed"
    assert api.files.retrieve(file.id) == file
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "1"}
    )
    assert batch.object == "batch" and batch.input_file_id == file.id and batch.metadata == {"run": "1"}
    batch = ended(api, batch)
    assert batch.status == "completed" and batch.model == SERVED_NAME and batch.error_file_id is None
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 12, "completed": 12, "failed": 0}
    found = results(api, batch.output_file_id)
    assert found.keys() == asked.keys()
    direct = client(engine)
    for name, body in asked.items():
        response = found[name]["response"]
        assert found[name]["error"] is None and response["status_code"] == 200 and response["request_id"]
        expected = plain(direct.chat.completions.create(model=SERVED_NAME, **body))
        answer = plain(response["body"])
        assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["message"]["content"]
    assert batch.usage is not None
    bodies = [line["response"]["body"]["usage"] for line in found.values()]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in bodies)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in bodies)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "import os", "max_tokens": 4}, "text_completion"),
        ("/v1/responses", {"input": "import os", "max_output_tokens": 4}, "response"),
    ],
)
def test_other_endpoints(gateway: str, endpoint: Any, body: dict[str, Any], kind: str) -> None:
    api = client(gateway)
    file = api.files.create(file=jsonl(endpoint, one=body), purpose="batch")
    batch = ended(api, api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h"))
    assert batch.status == "completed", batch
    assert results(api, batch.output_file_id)["one"]["response"]["body"]["object"] == kind
    assert batch.usage is not None and batch.usage.output_tokens > 0


def test_what_vllm_refuses_is_in_the_error_file(gateway: str) -> None:
    api = client(gateway)
    data = jsonl("/v1/chat/completions", good=chat("hello"), bad=chat("hello", temperature=-3))
    file = api.files.create(file=data, purpose="batch")
    created = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = ended(api, created)
    assert batch.status == "completed" and results(api, batch.output_file_id).keys() == {"good"}
    line = results(api, batch.error_file_id)["bad"]
    assert line["response"]["status_code"] == 400 and "temperature" in json.dumps(line["response"]["body"])


def test_a_bad_file_fails(gateway: str) -> None:
    api = client(gateway)
    data = jsonl("/v1/chat/completions", a=chat("x", stream=True)) + b"no json\n"
    file = api.files.create(file=data, purpose="batch")
    created = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = ended(api, created)
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data is not None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (1, "invalid_request"),
        (2, "invalid_json_line"),
    ]


def test_cancel(gateway: str, idle_engine: str) -> None:
    api = client(gateway)
    long = chat("write on", max_tokens=8_000, ignore_eos=True)
    asked = {f"long-{index}": long for index in range(3)}
    file = api.files.create(file=jsonl("/v1/chat/completions", **asked), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert api.batches.cancel(batch.id).status in ("cancelling", "finalizing", "cancelled")
    batch = ended(api, batch)
    assert batch.status == "cancelled" and batch.cancelled_at
    errors = results(api, batch.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}


def test_lists_pages_and_deletion(gateway: str) -> None:
    api = client(gateway)
    data = jsonl("/v1/chat/completions", a=chat("x"))
    files = [api.files.create(file=data, purpose="batch") for _ in range(3)]
    made = [
        ended(api, api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
        for file in files
    ]
    page = api.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [made[2].id, made[1].id] and page.has_next_page()
    walked = [batch.id for batch in api.batches.list(limit=2)]
    assert walked[:3] == [batch.id for batch in reversed(made)] and len(set(walked)) == len(walked)
    assert [file.id for file in api.files.list(purpose="batch", limit=2)][:3] == [file.id for file in reversed(files)]
    assert api.files.delete(files[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(files[0].id)
    with pytest.raises(openai.NotFoundError):
        api.batches.retrieve("batch_0")
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=data, purpose="fine-tune")
    assert caught.value.param == "purpose" and caught.value.code == "invalid_parameter"


async def test_async_and_expiry(gateway: str) -> None:
    async with async_client(gateway) as api:
        file = await api.files.create(
            file=jsonl("/v1/chat/completions", a=chat("x")),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3_600},
        )
        assert file.expires_at == file.created_at + 3_600
        assert (await api.files.content(file.id)).content == jsonl("/v1/chat/completions", a=chat("x"))
        batch = await api.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 7_200},
        )
    synchronous = client(gateway)
    output_id = ended(synchronous, batch).output_file_id
    assert output_id is not None
    output = synchronous.files.retrieve(output_id)
    assert output.purpose == "batch_output" and output.expires_at == output.created_at + 7_200
