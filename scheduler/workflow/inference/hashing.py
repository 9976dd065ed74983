"""How are contents compared? By hashes that are the same in each process: a digest for equality, a number for tables.

Not cryptographic: whoever makes two texts collide deceives their own key alone, as no table is shared between keys.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest as number
from xxhash import xxh3_128_digest as digest_of

__all__ = ["digest_of", "number"]
