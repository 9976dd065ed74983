"""What is random in an experiment? Nothing: hashes of the logged seed and salt, which anybody can compute again."""

from __future__ import annotations

from hashlib import sha256

_SCALE = 1 << 64


def share_of(*parts: object) -> float:
    """A number from 0 to below 1 that these parts alone decide: the first 64 bits of SHA-256 of `part/part/…`."""
    text = "/".join(map(str, parts))
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / _SCALE
