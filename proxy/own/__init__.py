"""The gateway's own API on the data plane: workflows, Parrot's sessions, batches. What is no model call."""
