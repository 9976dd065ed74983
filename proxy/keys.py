"""API keys: whose is this request?"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.config import KeyConfig

KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))
"""Headers that carry a key of ours: an engine never sees them."""
KEY_BYTES_MAX = 512
_NONE = ("0" * 64, None)


def hash_key(key: str | bytes) -> str:
    """SHA-256 in hex, as it is stored.

    No slow hash: our keys are 256 random bits, which nobody finds by trying; a slow hash protects guessable passwords,
    and would cost every call more than all else that the gateway does.
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def generate() -> tuple[str, str]:
    """A new key and its hash."""
    key = f"jg-{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


class Authorized(NamedTuple):
    """A header's value that was found valid, by which keys, and whose key it holds."""

    keys: KeyRing
    presented: bytes
    name: str


class KeyRing:
    """The configured keys, by hash."""

    def __init__(self, keys: Iterable[KeyConfig]) -> None:
        hashes = ((key.sha256.get_secret_value(), key.name) for key in keys)
        self._by_hash: dict[str, tuple[str, str | None]] = {stored: (stored, name) for stored, name in hashes}
        self.configured = bool(self._by_hash)
        self.names = frozenset(name for _, name in self._by_hash.values() if name is not None)

    def authenticate(self, fields: dict[bytes, bytes]) -> str | None:
        """The name of the key in a request's headers (by lowercase name); None if there is no valid one."""
        presented = fields.get(b"authorization")
        if presented is not None and presented[:7].lower() == b"bearer ":
            presented = presented[7:].strip()
        else:  # Anthropic's clients, Azure's
            presented = fields.get(b"x-api-key") or fields.get(b"api-key")
        if not presented or len(presented) > KEY_BYTES_MAX:
            return None
        digest = hash_key(presented)
        # Found by hash: the time of the look-up tells nothing of a key; the comparison is constant-time all the same.
        stored, name = self._by_hash.get(digest, _NONE)
        return name if hmac.compare_digest(stored, digest) else None
