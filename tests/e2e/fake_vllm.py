"""Stands for `vllm serve`: a server with a child process, which starts, fails, hangs or clings to life as it is told.

FAKE_VLLM names a folder. `record.jsonl` in it gets a line for each start. `mode` holds words: `fail` (prints 60
lines and ends with code 3), `chatty` (prints 1 MB), `stubborn` (it ignores SIGTERM; its child always does). /health
answers 503 as long as a file `loading` exists.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    """Be told, record, serve."""
    folder = Path(os.environ["FAKE_VLLM"])
    mode = (folder / "mode").read_text().split()
    if "stubborn" in mode:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    record = {
        "pid": os.getpid(),
        "child": child,
        "arguments": sys.argv[1:],
        "stdin": str(Path("/proc/self/fd/0").readlink()),
    }
    with (folder / "record.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    if "fail" in mode:
        for number in range(60):
            print(f"line {number}")
        print("CUDA out of memory", file=sys.stderr)
        sys.exit(3)
    if "chatty" in mode:
        for number in range(16_384):
            print(f"{number:063d}")
    serve(int(sys.argv[sys.argv.index("--port") + 1]), folder / "loading")


def serve(port: int, loading: Path) -> None:
    """Answer every request."""
    with socket.create_server(("127.0.0.1", port)) as server:
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                if loading.exists():
                    print("still loading", flush=True)
                status = "503 Service Unavailable" if loading.exists() else "200 OK"
                connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())


if __name__ == "__main__":
    main()
