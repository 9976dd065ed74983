"""How much work and memory would reading a JSON text cost? Told from its bytes, before it is read."""

from __future__ import annotations

COMMAS_A_VALUE = 4
"""A number or text in a list costs about a quarter of an object, a list or a member (measured: 40 ns and 30 bytes)."""


def over(data: bytes, values: int) -> bool:
    """Whether a text holds more than `values` brackets, colons and quarters of commas, those inside strings left out.

    Reading 16 MiB of small objects stops the loop for a second and takes 400 MiB; looking at 32 MiB here takes about
    40 ms, and 150 ms where strings alone bring it over, since they have to be taken out first.
    """
    if _count(data) <= values:
        return False
    if b"\\" in data:  # what is left of a quote that does not end a string must not look like one
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if data.count(b'"') > 2 * COMMAS_A_VALUE * values + 2:  # a string has a comma, colon or bracket behind it
        return True
    return _count(b"".join(data.split(b'"')[::2])) > values


def _count(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{") + data.count(b":") + data.count(b",") // COMMAS_A_VALUE
