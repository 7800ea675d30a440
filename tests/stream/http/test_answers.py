"""Which answer a request gets."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.stream.http.answers import Answer, Resource, answer_to
from whimbrel.stream.http.ranges import NotSatisfiable, parse_range
from whimbrel.stream.http.requests import Asked

SIZE = 10_000
DISK = Resource.of("secret-token", "vm-1/sda/7", SIZE)


def ask(method: str = "GET", path: str = "/secret-token", **headers: str) -> Answer:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return answer_to(Asked(method.encode(), path.encode(), named, h11.Connection(h11.SERVER), last=False), DISK)


def header(answer: Answer, name: bytes) -> bytes | None:
    return dict(answer.headers).get(name)


@given(st.integers(0, 2 * SIZE), st.integers(0, 2 * SIZE))
def test_a_range_is_what_exists_of_it(first: int, last: int) -> None:
    text = f"bytes={first}-{last}"
    asked = set(range(first, last + 1)) & set(range(SIZE))
    if first > last:
        assert parse_range(text.encode(), SIZE) is None
    elif not asked:
        with pytest.raises(NotSatisfiable):
            parse_range(text.encode(), SIZE)
        answer = ask(range=text)
        assert answer.status == 416
        assert header(answer, b"Content-Range") == b"bytes */10000"
    else:
        assert parse_range(text.encode(), SIZE) == (min(asked), max(asked) + 1)
        answer = ask(range=text)
        assert (answer.status, answer.body) == (206, (min(asked), max(asked) + 1))
        assert header(answer, b"Content-Range") == f"bytes {min(asked)}-{max(asked)}/{SIZE}".encode()
        assert header(answer, b"Content-Length") == str(len(asked)).encode()


@given(st.one_of(st.text(max_size=30), st.from_regex(r"bytes ?= ?[0-9]{0,25}-[0-9]{0,25}(,[0-9]*-[0-9]*)?")))
def test_any_range_header_is_a_range_or_ignored(text: str) -> None:
    try:
        found = parse_range(text.encode(), SIZE)
    except NotSatisfiable:
        return
    assert found is None or 0 <= found[0] < found[1] <= SIZE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=9000-", (9000, SIZE)),
        ("bytes=-300", (9700, SIZE)),
        ("bytes=-30000", (0, SIZE)),
        ("Bytes=1-1", (1, 2)),
        ("bytes=0-5,7-9", None),
        ("blocks=1-2", None),
        ("bytes=--1", None),
    ],
)
def test_open_and_last_ranges(text: str, found: tuple[int, int] | None) -> None:
    assert parse_range(text.encode(), SIZE) == found


def test_the_whole() -> None:
    for method, body in (("GET", (0, SIZE)), ("HEAD", None)):
        answer = ask(method)
        assert (answer.status, answer.body) == (200, body)
        assert header(answer, b"Content-Length") == b"10000"
        assert header(answer, b"Accept-Ranges") == b"bytes"
        assert header(answer, b"ETag") == DISK.etag
    assert ask("HEAD", range="bytes=0-1").status == 200


@pytest.mark.parametrize("path", ["/", "/secret-toke", "/secret-token/", "/secret-token?x", "*", "http://h/other", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_without_the_token_there_is_nothing(method: str, path: str) -> None:
    answer = ask(method, path)
    assert (answer.status, answer.close, answer.body) == (404, True, None)
    assert header(answer, b"ETag") is None


def test_a_proxys_form_of_the_target_is_known() -> None:
    assert ask(path="http://gateway:8080/secret-token").status == 200


def test_other_methods_are_refused_by_name() -> None:
    answer = ask("PUT")
    assert (answer.status, header(answer, b"Allow")) == (405, b"GET, HEAD")


def test_conditions() -> None:
    tag = DISK.etag.decode()
    assert re.fullmatch('"[0-9a-f]{32}"', tag)
    assert ask(if_none_match=tag).status == 304
    assert ask(if_none_match=f'"x", W/{tag}').status == 304
    assert ask(if_none_match='"x"').status == 200
    assert ask(if_match='"x"').status == 412
    assert ask(if_match=f"W/{tag}").status == 412
    assert ask(if_match=f'"x", {tag}').status == 200
    assert ask(if_match="*").status == 200
    assert ask(range="bytes=0-1", if_range=tag).status == 206
    assert ask(range="bytes=0-1", if_range='"x"').status == 200


def test_another_disk_has_another_tag() -> None:
    others = {Resource.of("t", "vm-1/sda/8", SIZE).etag, Resource.of("t", "vm-1/sda/7", SIZE + 1).etag}
    assert DISK.etag not in others
    assert len(others) == 2
