"""A map-reduce program in Parrot's API over plain HTTP, with nothing but Python's standard library.

    python examples/parrot_http.py [URL] [FILE] [--model MODEL] [--key KEY]

It cuts a text into parts, asks for a summary of each, and for one summary of the summaries. All calls are submitted
before anything runs; asking for the last variable runs what it needs, and the gateway knows the whole graph before the
first call: the parts' summaries only feed a join, so they may share the engine's steps, and the last call is the one
that somebody waits for.
"""
# ruff: noqa: T201  (it is a program: what it prints is its result)

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("GATEWAY_API_KEY", "")
TEXT = """A call is one model request. A workflow is the graph of calls behind one answer that a user sees.

An engine reads all its weights for each step, whatever the batch: calls that share a step share its cost.

Which calls can wait without anybody noticing is known only to whoever knows the workflow: a part of a join can, as long
as another part is not done either.

A gateway that knows the graph holds such calls back for a moment, lets them go together, and never holds up the last
call, for which the user waits."""

MAP = "Summarize this part of a text in one sentence.\n\n{{part}}\n\nSummary: {{summary}}"


class Session:
    """One session of Parrot's API. The id is all that identifies it: keep it to yourself."""

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url.rstrip("/") + "/v1"
        self.id = self.ask("POST", "/session", {"api_key": key})["session_id"]

    def ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """One request. Parrot's API has a JSON body with every method, GET and DELETE included."""
        request = urllib.request.Request(  # noqa: S310  (the user names the URL)
            self.base_url + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}")

    def call(self, name: str, template: str, models: list[str], max_tokens: int, **inputs: dict[str, str]) -> str:
        """Submit a semantic call with one output, `summary`; returns its variable's id at once."""
        parameters: list[dict[str, Any]] = [
            {"name": parameter, "is_output": False, **source} for parameter, source in inputs.items()
        ]
        sampling = {"temperature": 0.7, "max_gen_length": max_tokens}
        parameters.append({"name": "summary", "is_output": True, "sampling_config": sampling})
        body = {"session_id": self.id, "func_name": name, "template": template, "parameters": parameters}
        answer = self.ask("POST", "/semantic_call", {**body, "models": models})
        ids = {info["parameter_name"]: info["var_id"] for info in answer["param_info"]}
        return str(ids["summary"])

    def get(self, var_id: str, criteria: str) -> str:
        """Wait for a variable's content; whatever it needs runs now."""
        body = {"session_id": self.id, "criteria": criteria}
        return str(self.ask("GET", f"/semantic_var/{var_id}", body)["content"])

    def end(self) -> None:
        """Cancel what runs, forget the rest."""
        self.ask("DELETE", f"/session/{self.id}", {})


def main() -> None:
    parser = argparse.ArgumentParser(description="summarize a text by map-reduce, in Parrot's API")
    parser.add_argument("url", nargs="?", default=URL, help=f"of the gateway (default: {URL})")
    parser.add_argument("file", nargs="?", type=Path, help="the text; parts are separated by empty lines")
    parser.add_argument("--key", default=KEY, help="an API key of the gateway, if it has any")
    parser.add_argument("--model", help="default: the gateway's")
    options = parser.parse_args()
    text = options.file.read_text() if options.file else TEXT
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    models = [options.model] if options.model else []

    session = Session(options.url, options.key)
    try:
        summaries = [session.call("map", MAP, models, 60, part={"value": part}) for part in parts]
        names = [f"s{number}" for number in range(len(summaries))]
        template = "Join these summaries into one.\n\n" + "".join(f"- {{{{{name}}}}}\n" for name in names)
        inputs = {name: {"var_id": var_id} for name, var_id in zip(names, summaries, strict=True)}
        final = session.call("reduce", template + "\nOne summary: {{summary}}", models, 120, **inputs)
        answer = session.get(final, "latency")
        for number, var_id in enumerate(summaries, 1):
            print(f"part {number}: {session.get(var_id, 'throughput')}\n")
        print(f"the whole: {answer}")
    finally:
        session.end()


if __name__ == "__main__":
    main()
