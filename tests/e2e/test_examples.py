"""The examples that need no package of a client's, and the commands of the users' page: over the twin."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.twin_process import MODEL, Twin
from tests.vllm.children import ROOT, Gateway
from tests.vllm.wire import ask

PAGE = ROOT / "docs" / "workflows.md"
SECONDS = 60


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gateway")
    twin = Twin(folder / "twin", "--speed", "50")
    try:
        environment = {"JOULEGATE_WORKFLOWS__INFERENCE": "on"}
        child = Gateway(folder / "log", ["--engine", twin.wait_ready_to_serve().url], environment)
        try:
            child.wait_ready_to_serve()
            yield child.url
        finally:
            child.end()
    finally:
        twin.end()
    assert "Traceback" not in child.text()


def run(*command: str) -> str:
    """What it prints; it ends well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_curl(gateway: str) -> None:
    printed = run("examples/workflow_curl.sh", gateway)
    assert re.search(r'"status": ?"completed"', printed) and "flowchart TD" in printed


def test_a_node_that_fails_is_shown_with_its_words(gateway: str) -> None:
    printed = run("examples/workflow_curl.sh", gateway, "no-such-model")
    assert re.search(r'"status": ?"failed"', printed) and printed.count('"skipped"') >= 3
    assert "no-such-model" in printed


def test_parrots_api(gateway: str) -> None:
    assert "\nthe whole: " in run(sys.executable, "examples/parrot_http.py", gateway)


def test_traffic_for_an_experiment(gateway: str) -> None:
    printed = run(sys.executable, "examples/ab_traffic.py", gateway, MODEL, "--seconds", "1", "--deadline-ms", "60000")
    assert re.fullmatch(r"[1-9]\d* workflows, [1-9]\d+ output tokens\n", printed)


# --- docs/workflows.md ---


BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_every_command_of_the_page_does_what_it_says(gateway: str) -> None:
    """All of them in their order in one shell, as a reader types them; each block ends well."""
    assert len(BLOCKS) >= 4
    script = "".join(BLOCKS)
    assert "http://127.0.0.1:8080" in script and "MODEL" in script
    script = script.replace("http://127.0.0.1:8080", gateway).replace("MODEL", MODEL)
    strict = 'curl() { command curl -sS --fail-with-body "$@"; echo; }'  # a refusal ends the shell
    printed = run("bash", "-euo", "pipefail", "-c", f"{strict}\n{script}")
    for word in re.findall(r"<!-- prints: (.*?) -->", PAGE.read_text()):
        assert word in printed, f"{word!r} is not in what the page's commands print:\n{printed}"


def test_the_page_names_every_limit_and_member() -> None:
    """Nothing that a submission may hold, and no key of the table [workflows], is left out."""
    from proxy.workflows.config import WorkflowsConfig
    from proxy.workflows.nodes import MEMBERS
    from proxy.workflows.submission import _MEMBERS

    text = PAGE.read_text()
    for name in (*_MEMBERS, *MEMBERS, *WorkflowsConfig.model_fields):
        assert f"`{name}`" in text, name


def test_the_pages_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


def test_the_page_shows_the_error_codes_that_there_are(gateway: str) -> None:
    """A sample of the table of refusals."""
    refusals = {
        "unknown_placeholder": {
            "nodes": [{"id": "a", "request": {"messages": [{"role": "user", "content": "{{b}}"}]}}]
        },
        "duplicate_node": {"nodes": [{"id": "a", "request": {}}, {"id": "a", "request": {}}]},
        "unknown_member": {"nodes": [{"id": "a", "request": {}}], "colour": "blue"},
    }
    for code, body in refusals.items():
        answer = ask(gateway, "POST", "/v1/workflows", body)
        assert answer.status == 400 and answer.json()["error"]["code"] == code
        assert f"`{code}`" in PAGE.read_text()
