"""The door: HTTP in and out, identity, keys, wiring, the `joulegate` command."""
