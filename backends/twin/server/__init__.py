"""The twin behind a socket: vLLM's HTTP API and metrics in front of a simulated engine. It always says so."""
