"""The twin: a step-level model of a vLLM V1 engine and of its GPU's power. Whatever it reports is simulated."""
