"""Unmodified clients through the gateway to a real vLLM on the CPU."""
