"""Workloads played and measured: `run`, `sweep`, `compare`, `record`, `replay`, and the files that hold the results."""
