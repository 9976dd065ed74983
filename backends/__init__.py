"""The hands: engines over HTTP, engine processes, GPUs."""
