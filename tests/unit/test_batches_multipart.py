"""Multipart forms: what aiohttp writes is read as it was meant, and what is no form is refused."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp import FormData
from hypothesis import given
from hypothesis import strategies as st

from proxy.batches.form import read_upload
from proxy.batches.multipart import CONTENT_TYPE_LENGTH_MAX, FIELD_BYTES_MAX, HEAD_BYTES_MAX, PARTS_MAX, parse
from proxy.errors import RequestFault

KIND = "multipart/form-data; boundary=b"


def written(fields: list[tuple[str, Any, str | None]]) -> tuple[bytes, str]:
    """A form as aiohttp's client writes it: body and content type."""

    async def write() -> tuple[bytes, str]:
        form = FormData(quote_fields=False, default_to_multipart=True)
        for name, value, filename in fields:
            form.add_field(name, value, filename=filename)
        payload: Any = form()
        return await payload.as_bytes(), payload.content_type

    return asyncio.run(write())


def refused(body: bytes, kind: str | None = KIND) -> RequestFault:
    """The refusal of a form."""
    with pytest.raises(RequestFault) as caught:
        parse(body, kind)
    assert (caught.value.status, caught.value.reason) == (400, "invalid_form")
    return caught.value


def part(name: str = "f", data: bytes = b"x", more: bytes = b"") -> bytes:
    """One part, with the boundary before it."""
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more, data)


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
contents = st.binary(max_size=200) | st.lists(
    st.sampled_from([b"\r\n", b"--", b"\r", b"\n", b"-", b"boundary", b"x"]), max_size=30
).map(b"".join)


@given(
    st.dictionaries(names, contents, min_size=1, max_size=5),
    st.text(
        st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"], exclude_characters='"\\'),
        min_size=1,
        max_size=20,
    )
    .map(str.strip)
    .filter(bool),
)
def test_what_a_client_writes_is_read(values: dict[str, bytes], filename: str) -> None:
    body, kind = written([(name, value, filename) for name, value in values.items()])
    parts = parse(body, kind)
    assert {name: bytes(found.data) for name, found in parts.items()} == values
    assert {found.filename for found in parts.values()} == {filename}


@given(contents)
def test_content_that_looks_like_the_boundary(content: bytes) -> None:
    data = content.replace(b"boundary", b"\r\n--bx").replace(b"\r\n--b\r\n", b"").replace(b"\r\n--b--", b"")
    for delimiter in (b"\r\n--b ", b"\r\n--b\t", b"\r\n--b\r", b"\r\n--b-"):
        if delimiter in data + b"\r\n":
            return
    assert bytes(parse(part(data=data) + b"--b--\r\n", KIND)["f"].data) == data


@given(st.binary(max_size=300), st.integers(0, 400))
def test_nothing_but_a_refusal_comes_of_broken_forms(noise: bytes, cut: int) -> None:
    whole = part("a") + part("b", b"y" * 100) + b"--b--\r\n"
    for body in (noise, whole[:cut] + noise + whole[cut:], whole[: min(cut, len(whole) - 5)]):
        with contextlib.suppress(RequestFault):
            parse(body, KIND)


def test_a_form_that_is_cut_is_no_form() -> None:
    whole = part("a") + part("b") + b"--b--"
    assert parse(whole, KIND).keys() == {"a", "b"}
    for end in range(len(whole) - 1):
        refused(whole[:end])


def test_preamble_and_epilogue_are_nothing() -> None:
    assert parse(b"hello\r\n" + part() + b"--b-- \r\nbye\r\n--b\r\n", KIND).keys() == {"f"}
    assert parse(b"--b--\r\n", KIND) == {}


def test_quoting() -> None:
    body = part("f", more=b'; filename="a \\"b\\"; c.jsonl"') + part("g", more=b"; filename*=UTF-8''%e2%82%ac.x")
    parts = parse(body + b"--b--", KIND)
    assert parts["f"].filename == 'a "b"; c.jsonl' and parts["g"].filename == "€.x"
    assert parse(part() + b"--b--", 'multipart/form-data; boundary="b"').keys() == {"f"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (part() + b"--b--", None),
        (part() + b"--b--", "application/json"),
        (part() + b"--b--", "multipart/mixed; boundary=b"),
        (part() + b"--b--", "multipart/form-data"),
        (part() + b"--b--", f"multipart/form-data; boundary={'b' * 71}"),
        (part() + part() + b"--b--", KIND),
        (b"--b\r\n\r\nx\r\n--b--", KIND),
        (b"--b\r\nContent-Disposition: attachment; name=f\r\n\r\nx\r\n--b--", KIND),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", KIND),
        (part(more=b"\r\nContent-Transfer-Encoding: base64") + b"--b--", KIND),
        (part(more=b"\r\nx: " + b"x" * HEAD_BYTES_MAX) + b"--b--", KIND),
        (b"".join(part(str(index)) for index in range(PARTS_MAX + 1)) + b"--b--", KIND),
    ],
)
def test_what_is_refused(body: bytes, kind: str | None) -> None:
    refused(body, kind)


@pytest.mark.parametrize(
    "value",
    [
        b"filename*=idna''xn--%FF",
        b"filename*=undefined''a",
        b"filename*=punycode''a-%FF",
        b"filename*=\x00''a%FF",
        b"filename*99999999999999999999=a; filename*=b",
    ],
)
def test_codecs_that_a_client_names_cannot_raise(value: bytes) -> None:
    refused(part(more=b"; " + value) + b"--b--\r\n")
    refused(b"", "multipart/form-data; " + value.replace(b"filename", b"boundary").decode())


@pytest.mark.parametrize("value", [b"unicode_escape''%5Cud800.jsonl", b"utf-7''%2B2AA-.jsonl"])
def test_every_filename_can_be_written_down(value: bytes) -> None:
    found = parse(part(more=b"; filename*=" + value) + b"--b--\r\n", KIND)["f"].filename
    assert found == "?.jsonl"


def test_a_content_type_is_short() -> None:
    refused(part() + b"--b--\r\n", KIND + "; more=" + "x" * CONTENT_TYPE_LENGTH_MAX)


def test_fields_are_short_texts() -> None:
    parts = parse(
        part("long", b"x" * (FIELD_BYTES_MAX + 1)) + part("raw", b"\xff") + part("ok", "ö".encode()) + b"--b--", KIND
    )
    assert parts["ok"].text() == "ö"
    for name in ("long", "raw"):
        with pytest.raises(RequestFault) as caught:
            parts[name].text()
        assert caught.value.param == name


def test_an_upload_as_aiohttp_sends_it() -> None:
    fields = [("purpose", "batch", None), ("file", b"{}\n", "näme.jsonl")]
    upload = read_upload(*written(fields), 3)
    assert (upload.filename, bytes(upload.data), upload.keep_seconds) == ("näme.jsonl", b"{}\n", None)
    with pytest.raises(RequestFault) as caught:
        read_upload(*written(fields), 2)
    assert (caught.value.status, caught.value.reason, caught.value.param) == (413, "file_too_large", "file")
    with pytest.raises(RequestFault) as caught:
        read_upload(*written([("purpose", "batch", None), ("file", "{}", None)]), 3)
    assert caught.value.param == "file"
