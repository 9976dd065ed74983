"""`joulegate twin` over real sockets: what it answers, streams and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.twin_process import CHAT, COMPLETIONS, MODEL, Twin, completion, good, refused, sample
from tests.vllm.wire import OpenStream, ask, chat_body


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A quick one, for whatever does not watch it work."""
    child = Twin(tmp_path_factory.mktemp("twin") / "log", "--speed", "100", "--max-model-len", "4096")
    try:
        yield child.wait_ready_to_serve().url
    finally:
        child.end()
    assert "Traceback" not in child.text()


def text_of(url: str, **more: Any) -> str:
    """A completion's text."""
    text: str = good(url, COMPLETIONS, completion(**more))["choices"][0]["text"]
    return text


def stream(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a whole stream, which must end with [DONE]."""
    with OpenStream(url, path, body) as open_stream:
        events = list(open_stream.events())
    assert events[-1] == b"[DONE]"
    return [json.loads(event) for event in events[:-1]]


def tokens(url: str, text: str) -> list[int]:
    """What the twin's own tokenizer makes of a text."""
    ids: list[int] = good(url, "/tokenize", {"model": MODEL, "prompt": text})["tokens"]
    return ids


# --- answers ---


def test_it_always_says_that_it_is_simulated(twin: str) -> None:
    for method, path, body in (
        ("GET", "/health", None),
        ("GET", "/no/such/path", None),
        ("POST", CHAT, chat_body()),
        ("POST", CHAT, chat_body(temperature=-1)),
        ("POST", CHAT, chat_body(stream=True)),
    ):
        assert ask(twin, method, path, body).header("x-joulegate-engine") == "twin (simulated)"
    assert ask(twin, "GET", "/version").json()["simulated"] is True
    assert ask(twin, "GET", "/power").json()["source"] == "simulated"
    assert sample(twin, "joulegate_twin_info", source="simulated") == 1


def test_the_same_prompt_has_the_same_answer_streamed_or_not(twin: str) -> None:
    first, second = (good(twin, CHAT, chat_body("why?", max_tokens=40)) for _ in range(2))
    assert first["choices"] == second["choices"] and first["id"] != second["id"]
    chunks = stream(twin, CHAT, chat_body("why?", max_tokens=40))
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert streamed == first["choices"][0]["message"]["content"]
    other = good(twin, CHAT, chat_body("why not?", max_tokens=40))
    assert other["choices"][0]["message"]["content"] != streamed


def test_a_stream_is_in_order_and_ends_with_its_usage(twin: str) -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(twin, CHAT, chat_body(max_tokens=50, ignore_eos=True, stream_options=usage))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 50
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-1]["choices"] == []
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_answers_tokenize_to_what_they_were_charged(twin: str) -> None:
    for body in (completion(), completion("a question", max_tokens=4000, ignore_eos=False)):
        answer = good(twin, COMPLETIONS, {**body, "return_token_ids": True})
        choice, charged = answer["choices"][0], answer["usage"]["completion_tokens"]
        assert len(choice["token_ids"]) == charged
        ended_by_itself = choice["finish_reason"] == "stop"
        assert ended_by_itself is not body["ignore_eos"]
        assert tokens(twin, choice["text"]) == choice["token_ids"][: charged - ended_by_itself]
    assert good(twin, "/detokenize", {"tokens": tokens(twin, choice["text"])})["prompt"] == choice["text"]


def test_prompts_as_text_as_token_ids_and_several(twin: str) -> None:
    texts = ["one thing", "another"]
    ids = [tokens(twin, text) for text in texts]
    as_text = good(twin, COMPLETIONS, completion(texts, n=2, temperature=1))
    as_ids = good(twin, COMPLETIONS, completion(ids, n=2, temperature=1))
    assert as_text["choices"] == as_ids["choices"]
    assert [choice["index"] for choice in as_text["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in as_text["choices"]}) == 4
    assert as_text["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert as_text["usage"]["completion_tokens"] == 4 * 30
    assert text_of(twin, prompt=ids[0], temperature=0) == text_of(twin, prompt=texts[0], temperature=0)


def test_stop_strings_cut_streamed_and_not(twin: str) -> None:
    whole = text_of(twin)
    stop = whole.split()[7]
    cut = good(twin, COMPLETIONS, completion(stop=["never", stop]))["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
    assert text_of(twin, stop=stop, include_stop_str_in_output=True) == whole[: whole.index(stop)] + stop
    chunks = stream(twin, COMPLETIONS, completion(stop=["never", stop]))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == cut["text"]
    assert text_of(twin, stop=[stop], min_tokens=30) == whole


def test_echo_and_logprobs_fit_their_text(twin: str) -> None:
    prompt = "tell me more"
    answer = good(twin, COMPLETIONS, completion(prompt, echo=True, logprobs=2, max_tokens=5))["choices"][0]
    rows = answer["logprobs"]
    assert answer["text"] == "".join(rows["tokens"]) and answer["text"].startswith(prompt)
    at = [answer["text"][start:] for start in rows["text_offset"]]
    assert all(rest.startswith(token) for rest, token in zip(at, rows["tokens"], strict=True))
    assert rows["token_logprobs"][0] is None and all(value < 0 for value in rows["token_logprobs"][1:])
    chat = good(twin, CHAT, chat_body(logprobs=True, top_logprobs=3, max_tokens=6))["choices"][0]
    content = chat["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == chat["message"]["content"]
    assert [len(each["top_logprobs"]) for each in content] == [3] * 6


def test_tools_and_forms(twin: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 3}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    body = chat_body(tools=[tool], tool_choice="required", max_tokens=200)
    message = good(twin, CHAT, body)["choices"][0]["message"]
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"])["n"] <= 3
    deltas = [chunk["choices"][0]["delta"] for chunk in stream(twin, CHAT, body)]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"]["name"] == "add"
    assert "".join(each["function"].get("arguments", "") for each in calls) == call["function"]["arguments"]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = good(twin, CHAT, chat_body(response_format=form, max_tokens=100))["choices"][0]
    assert json.loads(answer["message"]["content"])["n"] <= 3 and answer["finish_reason"] == "stop"


def test_responses_stream_ends_with_the_same_response(twin: str) -> None:
    body = {"model": MODEL, "input": "hi", "max_output_tokens": 12, "temperature": 0}
    whole = good(twin, "/v1/responses", body)
    answer = ask(twin, "POST", "/v1/responses", {**body, "stream": True})
    blocks = answer.body.decode().split("\n\n")[:-1]
    names = [block.split("\n")[0].removeprefix("event: ") for block in blocks]
    events = [json.loads(block.split("\ndata: ")[1]) for block in blocks]
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert deltas == last["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]
    assert (last["status"], last["usage"]["output_tokens"]) == ("incomplete", 12)


def test_embeddings_are_unit_vectors_near_each_other_when_texts_are(twin: str) -> None:
    body = {"model": MODEL, "input": ["the red tree house", "the red tree", "joule"]}
    answer = good(twin, "/v1/embeddings", body)
    first, near, far = (row["embedding"] for row in answer["data"])

    def cosine(other: list[float]) -> float:
        return sum(a * b for a, b in zip(first, other, strict=True))

    assert cosine(first) == pytest.approx(1, abs=1e-5)
    assert cosine(near) > 0.7 and cosine(far) < 0.3
    assert answer["usage"]["prompt_tokens"] == sum(len(tokens(twin, text)) for text in body["input"])


def test_a_repeated_prefix_is_cached_unless_the_salt_differs(twin: str) -> None:
    prompt = tokens(twin, "a long story of the sea and of the land " * 20)

    def cached(**more: Any) -> int:
        usage = good(twin, COMPLETIONS, completion(prompt, **more))["usage"]
        count: int = usage["prompt_tokens_details"]["cached_tokens"]
        return count

    assert cached() == 0
    assert cached() == (len(prompt) - 1) // 16 * 16
    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0


def test_a_conversation_finds_its_last_turn_in_the_cache(twin: str) -> None:
    messages = [{"role": "user", "content": "what do you know of " + "water and fire " * 20}]
    first = good(twin, CHAT, {"model": MODEL, "messages": messages, "max_tokens": 100, "ignore_eos": True})
    messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
    kept = [{"role": each["role"], "content": each["content"]} for each in messages]
    second = good(twin, CHAT, {"model": MODEL, "messages": kept, "max_tokens": 5})
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= (first["usage"]["total_tokens"] - 1) // 16 * 16  # the last token's own KV is not computed


# --- bad input ---


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (completion("word " * 5000), "maximum context length is 4096 tokens"),
        (completion([5] * 5000), "5000 input tokens"),
        (completion([10**6]), "out of vocabulary"),
        (completion([[]]), "cannot be empty"),
        (completion(""), "must be provided and non-empty"),
        (completion(max_tokens=0), "max_tokens must be at least 1"),
        (completion(max_tokens=5000), "cannot be greater than max_model_len=4096"),
        (completion(max_tokens="many"), "body.max_tokens"),
        (completion(n=10**6), "n must be at most 128"),
        (completion(n=128, max_tokens=4000, temperature=1), "output tokens in one request"),
        (completion(["a"] * 2000), "2000 prompts"),
        (completion(stop=["a", ""]), "empty string"),
        (completion(structured_outputs={"regex": "a+"}), "regex"),
        (completion("\ud800"), "TextEncodeInput"),
        (b"{nope", "JSON decode error"),
        (b"[" * 100_000, None),
        (b"", "Field required"),
        (b"5", "valid dictionary"),
    ],
    ids=lambda value: None if isinstance(value, str | None) else str(value)[:40],
)
def test_bad_completions_are_refused_by_name(twin: str, body: Any, said: str | None) -> None:
    answer = ask(twin, "POST", COMPLETIONS, body)
    if said is None:
        assert (answer.status, answer.json()) == (400, {"detail": "There was an error parsing the body"})
    else:
        assert said in refused(answer)


def test_a_text_that_is_not_unicode_is_refused_wherever_it_stands(twin: str) -> None:
    choice = {"choice": ["\ud800"]}
    assert "not Unicode" in refused(ask(twin, "POST", CHAT, chat_body(structured_outputs=choice)))
    tool = {"type": "function", "function": {"name": "\ud800"}}
    answer = ask(twin, "POST", CHAT, chat_body(tools=[tool], tool_choice="required", max_tokens=99))
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "\ud800"


def test_other_refusals(twin: str) -> None:
    assert "`nope` does not exist" in refused(ask(twin, "POST", CHAT, chat_body(model="nope")), 404)
    assert "multimodal" in refused(
        ask(twin, "POST", CHAT, chat_body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]))
    )
    assert ask(twin, "GET", CHAT).status == 405
    assert ask(twin, "POST", "/nowhere", {}).json() == {"detail": "Not Found"}
    too_long = b'{"prompt": "' + b"x" * (65 * 1024 * 1024)
    assert "bytes" in refused(ask(twin, "POST", COMPLETIONS, too_long), 413)
