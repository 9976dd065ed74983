"""vLLM over HTTP: its connections, their pool, its health and its metrics; and vLLM as a child process."""
