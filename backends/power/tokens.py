"""How is a secret read that lies in a file?"""

from __future__ import annotations

import hmac
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST, LONGEST = 16, 512


class BadToken(ValueError):
    """A token file that cannot be used; the message names it and the way out."""


def read_token(file: Path) -> str:
    """The first line. BadToken where others may read it, or where it is too short to be one."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(LONGEST + 2)
    except OSError as error:
        raise BadToken(f"{file}: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise BadToken(f"{file}: others than its owner may read or write it; chmod 600 {file}")
    token = data.decode("ascii", "replace").partition("\n")[0].strip()
    if not SHORTEST <= len(token) <= LONGEST or not token.isascii() or not token.isprintable() or " " in token:
        raise BadToken(
            f"{file}: its first line must be {SHORTEST} to {LONGEST} visible ASCII characters;"
            f" make one with: (umask 077; openssl rand -hex 32 > {file})"
        )
    return token


def bearer(file: Path | None) -> dict[str, str]:
    """The header to send, or none. BadToken."""
    return {} if file is None else {"authorization": f"Bearer {read_token(file)}"}


def same(sent: str, token: str) -> bool:
    """Whether a header carries the token; takes as long wherever they differ."""
    return hmac.compare_digest(sent.encode("utf-8", "replace"), f"Bearer {token}".encode())
