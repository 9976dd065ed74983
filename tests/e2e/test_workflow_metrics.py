"""The metrics of workflows, read off a whole gateway, are those that the documentation lists; and they move."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import EngineRequest, RunningGateway, engine, gateway, run
from tests.e2e.test_control import get
from tests.unit.test_metrics import OF_WORKFLOWS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "observability.md").read_text()
SAID = "an answer that is long enough to be found again, word for word, in what is asked next"


async def answers(request: EngineRequest) -> None:
    message = {"role": "assistant", "content": SAID}
    await request.answer(json.dumps({"choices": [{"index": 0, "message": message}]}).encode())


async def scrape(running: RunningGateway) -> dict[str, float]:
    text = (await get(running.control_port, "/metrics")).body.decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if OF_WORKFLOWS.match(sample.name)
    }


def ask(content: str) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]}


def test_they_are_documented_and_move() -> None:
    async def main() -> None:
        async with engine(answers) as upstream, gateway(upstream, workflows={"inference": "on"}) as running:
            nodes = [{"id": "a", "request": ask("hello")}]
            assert (await running.post("/v1/workflows", {"nodes": nodes})).json["status"] == "completed"
            for content in ("begin with this", f"go on from: {SAID}."):
                assert (await running.post("/v1/chat/completions", ask(content))).status == 200
            found = await scrape(running)
            assert found["joulegate_workflows_submitted over"] == 1
            assert found["joulegate_workflows closed"] == 1 and found["joulegate_workflows live"] == 1
            assert found["joulegate_workflow_nodes"] == 3 and found["joulegate_workflow_edges"] == 1
            assert found["joulegate_inference_calls_total"] == 2
            assert found["joulegate_inference_data_edges_total"] == 1
            documented = set(re.findall(r"^\| `(joulegate_\w+)`", DOCUMENT, re.MULTILINE))
            exposed = {name.partition(" ")[0] for name in found} | {
                "joulegate_batches"
            }  # of no batch there is no state
            assert {name for name in documented if OF_WORKFLOWS.match(name)} == exposed

    run(main)
