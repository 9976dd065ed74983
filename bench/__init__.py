"""Benchmarks of the gateway: the `joulegate-bench` command."""
