"""What is tested: unit, sim (virtual time), e2e (real sockets), fuzz and vllm (a real engine)."""
