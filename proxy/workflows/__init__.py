"""Workflows that a client submits whole: the gateway runs the graph, or is told of it and watches."""
