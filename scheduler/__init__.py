"""The mind: workflow graph, policies, ledger. Events in, actions out; no I/O, no clock, no threads."""
