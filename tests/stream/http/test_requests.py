"""Cutting a client's bytes into requests: any split, any number at once, and nonsense."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whimbrel.stream.http.requests import MAX_BODY_BYTES, MAX_HEAD_BYTES, Asked, Malformed, Requests

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=40)
HEADERS = st.dictionaries(
    TOKENS.filter(lambda name: name not in {"host", "connection", "content-length", "transfer-encoding", "expect"}),
    st.text("abc=-0123456789,", min_size=1, max_size=20),
    max_size=4,
)
REQUESTS = st.lists(
    st.tuples(st.sampled_from(["GET", "HEAD", "PUT"]), TOKENS, HEADERS, st.binary(max_size=50)), max_size=6
)


def wire(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} /{path} HTTP/1.1", "Host: gateway", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(REQUESTS, st.lists(st.integers(0, 10_000), max_size=20))
def test_requests_come_out_whole_and_in_order_however_they_were_split(
    sent: list[tuple[str, str, dict[str, str], bytes]], points: list[int]
) -> None:
    parser = Requests()
    data = b"".join(wire(*each) for each in sent)
    got = [asked for piece in cut(data, points) for asked in parser.feed(piece)]
    assert [(asked.method.decode(), asked.target.decode()) for asked in got] == [(m, f"/{p}") for m, p, _, _ in sent]
    for asked, (_, _, headers, _) in zip(got, sent, strict=True):
        assert {
            name.encode(): value.strip().encode() for name, value in headers.items()
        }.items() <= asked.headers.items()
        assert not asked.last


@given(REQUESTS, st.binary(max_size=400), st.lists(st.integers(0, 10_000), max_size=8))
@example([], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [])
@example([], b"GET / HTTP/9.9\r\n\r\n", [])
@example([], b"\r\n" * 20000, [])
@example([], b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\nmore", [])
@example([], b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", [])
@example([], b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", [])
def test_junk_never_does_more_than_end_the_connection(
    before: list[tuple[str, str, dict[str, str], bytes]], junk: bytes, points: list[int]
) -> None:
    parser = Requests()
    data = b"".join(wire(*each) for each in before) + junk
    got: list[Asked] = []
    bad: Malformed | None = None
    for piece in cut(data, points):
        try:
            for asked in parser.feed(piece):
                got.append(asked)  # noqa: PERF402 - those before a bad one count
        except Malformed as error:
            bad = error
            break
    assert len(got) >= len(before)
    if bad is not None:
        assert 400 <= bad.status < 600
        assert bad.reply.send(h11.Response(status_code=bad.status, headers=[(b"Content-Length", b"0")], reason=b""))
        assert not list(parser.feed(wire("GET", "x", {})))


@pytest.mark.parametrize(
    "request_bytes",
    [
        wire("GET", "a", {"Connection": "close"}),
        b"GET /a HTTP/1.0\r\n\r\n",
        wire("GET", "a", {"Expect": "100-continue", "Content-Length": "7"}),
    ],
)
def test_after_a_last_request_nothing_is_read(request_bytes: bytes) -> None:
    parser = Requests()
    asked = list(parser.feed(request_bytes + wire("GET", "b", {})))
    assert [each.last for each in asked] == [True]
    assert not list(parser.feed(wire("GET", "c", {})))


def test_heads_and_bodies_have_their_limit() -> None:
    with pytest.raises(Malformed) as endless:
        list(Requests().feed(b"GET /" + b"x" * MAX_HEAD_BYTES * 2))
    assert endless.value.status == 431
    parser = Requests()
    body = bytes(MAX_BODY_BYTES + 1)
    with pytest.raises(Malformed) as large:
        list(parser.feed(wire("GET", "x", {}, body)))
    assert large.value.status == 413
