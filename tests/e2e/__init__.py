"""The whole gateway over real sockets."""
