"""A libnvidia-ml.so.1 of ours, and how tests build and direct it."""
