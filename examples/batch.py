"""OpenAI's Batch API through Joulegate, with openai-python as it is.

    python examples/batch.py [URL] [--model MODEL] [--key KEY]

Ten questions are uploaded as one file, answered when it is cheapest, and their answers printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from openai import OpenAI

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("GATEWAY_API_KEY", "none")
COUNTRIES = ("Chile", "Ghana", "India", "Japan", "Kenya", "Laos", "Malta", "Nepal", "Oman", "Peru")


def main() -> int:
    """Upload, create, wait, download. Returns the exit code."""
    parser = argparse.ArgumentParser(description="answer ten questions as a batch")
    parser.add_argument("url", nargs="?", default=URL, help=f"of the gateway (default: {URL})")
    parser.add_argument("--model", help="default: the first that the gateway serves")
    parser.add_argument("--key", default=KEY, help="an API key of the gateway, if it has any")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.url.rstrip('/')}/v1", api_key=options.key)
    model = options.model or client.models.list().data[0].id

    requests = [
        {
            "custom_id": country,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": f"What is the capital of {country}?"}],
                "max_tokens": 32,
            },
        }
        for country in COUNTRIES
    ]
    data = "".join(json.dumps(request) + "\n" for request in requests).encode()
    file = client.files.create(file=("capitals.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"example": "batch"}
    )
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    sys.stderr.write(f"{batch.id} is {batch.status}: {batch.request_counts}, {batch.usage}\n")

    for file_id in (batch.output_file_id, batch.error_file_id):
        for line in client.files.content(file_id).text.splitlines() if file_id else ():
            result = json.loads(line)
            answer = result["response"] and result["response"]["body"]
            said = answer["choices"][0]["message"]["content"] if answer and "choices" in answer else result
            sys.stdout.write(f"{result['custom_id']}: {said}\n")
    return 0 if batch.status == "completed" and not batch.error_file_id else 1


if __name__ == "__main__":
    sys.exit(main())
