"""How are contents compared? By hashes that are the same in each process: a digest for equality, a number for tables.

Not cryptographic: whoever makes two texts collide deceives their own key alone, as no table is shared between keys.
"""

from __future__ import annotations

try:
    from xxhash import xxh3_64_intdigest as _number
    from xxhash import xxh3_128 as running
    from xxhash import xxh3_128_digest as digest
except ImportError:  # slower by far, for a checkout whose environment is older than the dependency
    from functools import partial
    from hashlib import blake2b

    running = partial(blake2b, digest_size=16)  # type: ignore[assignment,misc]

    def digest(data: bytes, seed: int = 0) -> bytes:  # type: ignore[misc]
        return blake2b(data, digest_size=16).digest()

    def _number(data: bytes, seed: int = 0) -> int:  # type: ignore[misc]
        return int.from_bytes(blake2b(data, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")


__all__ = ["digest", "number", "running"]


def number(data: bytes | memoryview, seed: int = 0) -> int:
    """64 bits; seeds tell families of texts apart."""
    found: int = _number(data, seed)
    return found
