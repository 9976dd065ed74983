"""The four workloads, arrivals, traces and the player: a client like any other."""
