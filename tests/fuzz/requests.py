"""Streams of requests as good and bad clients write them, as hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
"""Within a body: nobody may ever read it as a request."""
_JSON = b'{"model":"m","messages":[]}'


def one_of(good: list[bytes], bad: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly a good one."""
    return st.one_of(st.sampled_from(good), st.sampled_from(good), st.sampled_from(good), st.sampled_from(good + bad))


METHODS = one_of(
    [b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"OPTIONS"], [b"FOO", b"get", b"CONNECT", b"PRI", b"G\x00T"]
)
GOOD_TARGETS = [b"/v1/chat/completions", b"/v1/models", b"/a/b?c=d", b"/w/run-1/v1/completions", b"http://h:1/abs?q=1"]
TARGETS = one_of(
    [*GOOD_TARGETS, b"/any", b"/w/only", b"//twice", b"/a#b", b"/%00%0d%0a", b"HTTP://h", b"https://h?q"],
    [
        b"*",
        b"x",
        b"",
        b"ftp://x/",
        b"/a b",
        b"/\xc3\xa9",
        b"/\x00",
        b"/" + b"u" * 600,
        b"http://",
        b"http://[/",
        b"http://[::1]/",
        b"/w/%20/v1/models",
        b"/w/%/x",
    ],
)
VERSIONS = st.one_of(
    st.just(b"HTTP/1.1"),
    st.just(b"HTTP/1.1"),
    st.just(b"HTTP/1.1"),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"", b"HTTP/1.1 ", b"HTTP/0.9"]),
)
HOSTS = one_of([b"host: x", b"Host:x"], [b"", b"host: x\r\nhost: y", b"host : x", b"host:", b"host: x\r\nHOST: x"])
LINES = one_of(
    [
        b"x: y",
        b"x-a: 1",
        b"X-B:\t2 ",
        b"accept: */*, a/b",
        b"cookie: a=\xff",
        b"x-empty:",
        b"te: trailers",
        b"content-type: application/json",
        b"x-request-id: mine",
        b"x-workflow-id: run",
        b"keep-alive: 5",
        b"x-session-id: s",
        b"traceparent: 00-x",
        b"authorization: Bearer k",
        b"connection: keep-alive",
        b"x-workflow-final: maybe",
    ],
    [
        b"x: y\r\n z",
        b"x : y",
        b"x: a\x00b",
        b": v",
        b"word",
        b"\xc3\xa9: a",
        b"x: a\rb",
        b"x: a\nb",
        b" x: y",
        b"x: \x7f",
        b"x-workflow-id:",
        b"x-workflow-final: maybe",
        b"expect: 100-continue",
        b"expect: more",
        b"upgrade: websocket",
        b"connection: close",
        b"connection: upgrade",
        b"connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMA",
        b"connection: x-a, X-B\r\nx-a: 1",
        b"connection: x-a\r\nconnection: x-b\r\nx-a: 1",
        b"connection: close, upgrade\r\nupgrade: a",
        b"connection: content-length, host",
        b"connection: ,",
        b"content-encoding: gzip",
        b"authorization: a\r\nauthorization: b",
        b"trailer: x-t",
        b"proxy-connection: close",
        b"\r\n".join([b"x-%d: y" % i for i in range(62)]),
        b"\r\n".join([b"y-%d: y" % i for i in range(70)]),
        b"long: " + b"l" * 2100,
    ],
)
BODIES = st.sampled_from(
    [_JSON, b"", b"[1]", b'{"model":', SMUGGLED, _JSON + SMUGGLED, b"x" * 700, b"0\r\n\r\n" + SMUGGLED, b'{"model":1}']
)
LENGTHS = [b"+3", b"-1", b"3, 3", b"", b"0x3", b"3 3", b"3.0", b"1e1", b"9" * 23, b"5000", b"003", b"\x0b3", b"3;a"]
CODINGS = [
    b"Chunked",
    b"chunked ",
    b"xchunked",
    b"gzip, chunked",
    b"chunked, identity",
    b"identity",
    b"\x0bchunked",
    b"chunked,",
    b'"chunked"',
    b"chunked\r\ntransfer-encoding: chunked",
    b"",
    b"chunked;q=1",
]
SIZES = [
    b"%x",
    b"%X",
    b"0%x",
    b"%x;a=b",
    b'%x;a="b"',
    b"%x;",
    b"%x ",
    b" %x",
    b"+%x",
    b"-%x",
    b"0x%x",
    b"%xg",
    b"%x\n",
    b"%x;a\x00",
    b"0000000000000000000%x",
    b"f%x",
    b"fffffffffffffff%x",
    b"1ffffffffffffffff%x",
]
CHUNK_ENDS = [b"\r\n", b"\n", b"", b"X\r\n", b"\r"]
TRAILERS = [
    b"",
    b"x-t: 1\r\n",
    b"content-length: 9\r\n",
    b"bad\r\n",
    b"x: y\r\n z\r\n",
    b"transfer-encoding: chunked\r\n",
]


@st.composite
def chunked(draw: st.DrawFn, body: bytes, *, good: bool) -> bytes:
    """A body in chunks, of which mostly not more than one thing is wrong."""
    fault = None if good else draw(st.sampled_from([None, None, "size", "end", "last", "trailer", "none"]))
    middle = draw(st.integers(0, len(body)))
    out = b""
    for part in (body[:middle], body[middle:]):
        if part:
            size = draw(st.sampled_from(SIZES if fault == "size" else SIZES[:5]))
            end = draw(st.sampled_from(CHUNK_ENDS)) if fault == "end" else b"\r\n"
            out += size % len(part) + b"\r\n" + part + end
    if fault == "none":
        return out
    out += draw(st.sampled_from([b"0\n", b"00;a\r\n", b"0\r\r\n", b"0 \r\n"])) if fault == "last" else b"0\r\n"
    return out + draw(st.sampled_from(TRAILERS if fault == "trailer" else TRAILERS[:2])) + b"\r\n"


@st.composite
def framed(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Header lines that say how long the body is, truly or not, and the body."""
    body = draw(BODIES)
    right = b"content-length: %d" % len(body)
    kind = draw(
        st.sampled_from(["right", "right", "chunked", "chunked", "none", "length", "coding", "both", "off", "twice"])
    )
    if kind == "right":
        return [right], body
    if kind == "none":
        return [], body
    if kind == "length":
        return [b"content-length: " + draw(st.sampled_from(LENGTHS))], body
    if kind == "off":
        return [b"content-length: %d" % max(0, len(body) + draw(st.sampled_from([-7, -1, 1, 60])))], body
    if kind == "twice":
        return [right, draw(st.sampled_from([right, b"Content-Length: 0"]))], body
    coding = b"transfer-encoding: " + (draw(st.sampled_from(CODINGS)) if kind == "coding" else b"chunked")
    lines = draw(st.permutations([coding, right])) if kind == "both" else [coding]
    return list(lines), draw(chunked(body, good=kind != "chunked"))


@st.composite
def a_request(draw: st.DrawFn) -> bytes:
    """One request, good or mangled."""
    lines, body = draw(framed()) if draw(st.booleans()) else ([], b"")
    lines = [draw(HOSTS), *draw(st.lists(LINES, max_size=3)), *lines]
    if draw(st.integers(0, 3)) == 0:
        lines = draw(st.permutations(lines))
    first = b" ".join([draw(METHODS), draw(TARGETS), draw(VERSIONS)])
    head = [line + b"\r\n" for line in (first, *lines) if line]
    if draw(st.integers(0, 15)) == 0:  # one line ends otherwise
        at = draw(st.integers(0, len(head) - 1))
        head[at] = head[at][:-2] + draw(st.sampled_from([b"\n", b"\r", b"\r\r\n", b" \r\n", b"\x00\r\n"]))
    return b"".join(head) + b"\r\n" + body


BETWEEN = st.one_of(
    st.just(b""), st.just(b""), st.just(b""), st.sampled_from([b"", b"\r\n", b"\n", b"\r\n\r\n", b"x", b"\x00"])
)
EDITS = st.tuples(
    st.integers(0, 1 << 16),
    st.integers(0, 2),
    st.sampled_from([b"", b"\r\n", b"\n", b"\r", b"\x00", b" ", b":", b"0", b"\xff", b"\t", SMUGGLED]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """What a client sends on one connection: some requests, and at times a few bytes that are not as they were."""
    data = b"".join([draw(a_request()) + draw(BETWEEN) for _ in range(draw(st.integers(1, 4)))])
    for place, removed, inserted in draw(st.lists(EDITS, max_size=2)) if draw(st.booleans()) else ():
        place %= len(data) + 1
        data = data[:place] + inserted + data[place + removed :]
    return data


NAMED = [b"connection: x-a, x-b\r\nx-b: 1\r\n", b"connection: x-a\r\nconnection: x-b\r\nx-a: 1\r\n"]
"""Headers for the next hop alone."""


@st.composite
def good_streams(draw: st.DrawFn) -> bytes:
    """Requests without a fault, each of which an engine must get."""
    out = b""
    for number in range(draw(st.integers(1, 12))):
        method = draw(st.sampled_from([b"GET", b"POST", b"HEAD"]))
        target = draw(st.sampled_from(GOOD_TARGETS))
        fields = b"".join(
            [draw(st.sampled_from([b"", b"x-a: 1\r\n", b"expect: 100-continue\r\n", *NAMED])), b"x: %d\r\n" % number]
        )
        upgrade = draw(st.sampled_from([b"", b"", b"connection: upgrade\r\nupgrade: websocket\r\n"]))
        if method == b"POST":
            framing, body = b"content-length: %d\r\n" % len(_JSON), _JSON
            if draw(st.booleans()):
                framing, body = b"transfer-encoding: chunked\r\n", draw(chunked(_JSON, good=True))
        else:
            framing = body = b""
        out += b"%b %b HTTP/1.1\r\nhost: x\r\n%b%b%b\r\n%b" % (method, target, fields, upgrade, framing, body)
    return out


CUTS = st.lists(st.integers(0, 1 << 13), max_size=6) | st.none()
"""Where a stream is cut; None: behind each byte."""
