"""API keys: from which header, whose, and that nothing of them is kept but a hash."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from proxy.config import KeyConfig
from proxy.keys import KEY_BYTES_MAX, KEY_HEADERS, KeyRing, generate, hash_key

ALICE, ALICE_HASH = generate()
BOB, BOB_HASH = generate()


def ring(*hashes: str) -> KeyRing:
    """Keys named after their order: k0, k1 …"""
    return KeyRing([KeyConfig(name=f"k{index}", sha256=SecretStr(value)) for index, value in enumerate(hashes)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer %b"),
        (b"authorization", b"bearer %b"),
        (b"authorization", b"BEARER   %b "),
        (b"x-api-key", b"%b"),
        (b"api-key", b"%b"),
    ],
)
def test_each_header_that_clients_use(name: bytes, value: bytes) -> None:
    keys = ring(ALICE_HASH, BOB_HASH)
    assert keys.authenticate({name: value % ALICE.encode()}) == "k0"
    assert keys.authenticate({name: value % BOB.encode()}) == "k1"
    assert name in KEY_HEADERS, "the engine must not see it"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": ALICE.encode()},
        {b"authorization": b"Basic " + ALICE.encode()},
        {b"authorization": b"Bearer " + ALICE.encode() + b"x"},
        {b"authorization": b"Bearer " + ALICE.encode()[:-1]},
        {b"authorization": b"Bearer " + ALICE_HASH.encode()},
        {b"x-api-key": ALICE_HASH.encode()},
        {b"x-api-key": b"\xff\x00"},
        {b"x-api-key": b"a" * (KEY_BYTES_MAX + 1)},
        {b"cookie": ALICE.encode()},
    ],
)
def test_who_has_no_valid_key_is_nobody(fields: dict[bytes, bytes]) -> None:
    assert ring(ALICE_HASH).authenticate(fields) is None
    assert ring().authenticate(fields) is None


def test_a_bearer_token_counts_before_the_other_headers() -> None:
    keys = ring(ALICE_HASH, BOB_HASH)
    assert keys.authenticate({b"authorization": b"Bearer " + BOB.encode(), b"x-api-key": ALICE.encode()}) == "k1"
    assert keys.authenticate({b"authorization": b"Basic eDp5", b"x-api-key": ALICE.encode()}) == "k0"


@pytest.mark.parametrize(("size", "name"), [(KEY_BYTES_MAX, "k0"), (KEY_BYTES_MAX + 1, None)])
def test_a_key_longer_than_any_is_not_even_hashed(size: int, name: str | None) -> None:
    assert ring(hash_key(b"a" * size)).authenticate({b"x-api-key": b"a" * size}) == name


@given(st.binary(max_size=600))
def test_whatever_is_presented_is_hashed_or_refused(presented: bytes) -> None:
    keys = ring(ALICE_HASH, hash_key(presented))
    expected = "k1" if presented and len(presented) <= KEY_BYTES_MAX else None
    assert keys.authenticate({b"x-api-key": presented}) == expected


def test_the_zeros_that_stand_for_no_key_are_no_key() -> None:
    assert ring().authenticate({b"x-api-key": b"0" * 64}) is None


def test_upper_case_hashes_are_the_same() -> None:
    assert ring(ALICE_HASH.upper()).authenticate({b"x-api-key": ALICE.encode()}) == "k0"


def test_whether_keys_are_configured() -> None:
    assert ring(ALICE_HASH).configured
    assert not ring().configured


def test_a_new_key_is_long_random_and_printable() -> None:
    keys = {generate()[0] for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("jg-")
        assert len(key) == 3 + 43, "32 random bytes"
        assert key.isascii()
        assert key.isprintable()
        assert hash_key(key) == hash_key(key.encode()) == hashlib.sha256(key.encode()).hexdigest()


def test_nothing_of_a_key_is_kept() -> None:
    keys = ring(ALICE_HASH)
    keys.authenticate({b"x-api-key": ALICE.encode()})
    assert ALICE not in repr(vars(keys))
