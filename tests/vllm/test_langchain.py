"""langchain-openai under langchain's own standard suite, once against vLLM itself and once through the gateway.

What vLLM with this model cannot do is named below, holds for both, and is checked to be true: an expected failure that
passes is an error. All else must pass through the gateway because it passes without it.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.vllm.children import SERVED_NAME
from tests.vllm.wire import ask

ARGUMENTS = "vLLM holds a random model to a forced tool's name, not to its arguments: the call cannot be right"
NOT_WITHOUT_US_EITHER = {
    "test_tool_calling": ARGUMENTS,
    "test_tool_calling_async": ARGUMENTS,
    "test_tool_calling_with_no_arguments": ARGUMENTS,
    "test_tool_choice": ARGUMENTS,
    "test_bind_runnables_as_tools": ARGUMENTS,
    "test_unicode_tool_call_integration": ARGUMENTS,
    "test_structured_output_pydantic_2_v1": f"a Pydantic 1 schema is asked for as a tool; {ARGUMENTS}",
    "test_agent_loop": "a random model calls no tool unless it is forced to",
    "test_json_mode": "JSON mode names no schema, so the random model writes an empty object",
}
"""Tests of the suite that fail against vLLM itself, and why."""


@pytest.fixture(scope="module")
def closing_bias(engine: str) -> dict[str, int]:
    """A bias to what ends a JSON value: a random model told to write JSON would fill its first string for ever."""

    def token(text: str) -> str:
        [one] = ask(engine, "POST", "/tokenize", {"model": SERVED_NAME, "prompt": text}).json()["tokens"]
        return str(one)

    return {token('"'): 100, token("}"): 50}


class Suite(ChatModelIntegrationTests):
    """What is true of langchain-openai with vLLM and a random model that knows text alone."""

    base_url: str
    closing_bias: dict[str, int]

    @property
    def model_override_value(self) -> str:
        return SERVED_NAME

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": SERVED_NAME,
            "base_url": f"{self.base_url}/v1",
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 40,
            "max_retries": 0,
            "stream_usage": True,
            "logit_bias": self.closing_bias,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True


for _name, _reason in NOT_WITHOUT_US_EITHER.items():
    _test = getattr(ChatModelIntegrationTests, _name)
    setattr(Suite, _name, pytest.mark.xfail(reason=_reason, strict=True)(_test))


class TestDirectly(Suite):
    @pytest.fixture(autouse=True)
    def where(self, engine: str, closing_bias: dict[str, int]) -> None:
        self.base_url = engine
        self.closing_bias = closing_bias


class TestThroughGateway(Suite):
    @pytest.fixture(autouse=True)
    def where(self, gateway: str, closing_bias: dict[str, int]) -> None:
        self.base_url = gateway
        self.closing_bias = closing_bias
