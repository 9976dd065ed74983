"""HTTP/1.1 on the data plane: what is read from a client, and what is written to one."""
