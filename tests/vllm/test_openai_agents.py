"""openai-agents runs an agent's turns through the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

from tests.vllm.children import SERVED_NAME


def two_turns(base_url: str, streamed: bool = False) -> list[str]:
    """What the agent says to a question and to a second one that carries the first's history."""
    set_tracing_disabled(True)

    async def run() -> list[str]:
        async with AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key="none", max_retries=0, default_headers={"x-workflow-id": "agent-run"}
        ) as api:
            agent = Agent(
                name="helper",
                instructions="Answer in few words.",
                model=OpenAIChatCompletionsModel(model=SERVED_NAME, openai_client=api),
                model_settings=ModelSettings(temperature=0, max_tokens=8),
            )
            said: list[str] = []
            history: list[Any] = []
            for question in ("What is os.path?", "And pathlib?"):
                asked = [*history, {"role": "user", "content": question}]
                if streamed:
                    running = Runner.run_streamed(agent, asked)
                    async for _ in running.stream_events():
                        pass
                    said.append(str(running.final_output))
                    history = list(running.to_input_list())
                else:
                    result = await Runner.run(agent, asked)
                    said.append(str(result.final_output))
                    history = list(result.to_input_list())
            return said

    return asyncio.run(run())


def test_two_turns(engine: str, gateway: str) -> None:
    direct, through = two_turns(engine), two_turns(gateway)
    assert through == direct
    assert all(through)


def test_two_turns_streamed(engine: str, gateway: str) -> None:
    assert two_turns(gateway, streamed=True) == two_turns(engine, streamed=True) == two_turns(gateway)
