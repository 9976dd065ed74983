"""The request path under input that nobody meant."""
