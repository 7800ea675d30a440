"""What a request is answered with: a pure function of the request and the disk."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from whimbrel.stream.http.ranges import NotSatisfiable, parse_range
from whimbrel.stream.http.requests import Asked

ALLOWED: Final = b"GET, HEAD"
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_TAGS: Final = re.compile(rb'(?:W/)?"[^"]*"')

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Resource:
    """The disk as HTTP sees it."""

    token: bytes
    size_bytes: int
    etag: bytes

    @classmethod
    def of(cls, token: str, identity: str, size_bytes: int) -> Resource:
        """The content never changes for one ``identity``: the source is frozen."""
        digest = hashlib.sha256(f"{identity}\0{size_bytes}".encode()).hexdigest()[:32]
        return cls(token.encode(), size_bytes, f'"{digest}"'.encode())


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers, and the bytes of the disk that follow them."""

    status: int
    headers: Headers = field(default_factory=list)
    body: tuple[int, int] | None = None
    """First byte and end (without)."""
    close: bool = False
    """Whether the connection ends with it."""


def answer_to(asked: Asked, disk: Resource) -> Answer:
    """The answer of RFC 9110 to one request. A stranger learns nothing but 404."""
    path = b"/" + disk.token
    if not hmac.compare_digest(_ABSOLUTE.sub(b"", asked.target, count=1), path):
        return Answer(404, [(b"Content-Length", b"0")], close=True)
    if asked.method not in {b"GET", b"HEAD"}:
        return Answer(405, [(b"Allow", ALLOWED), (b"Content-Length", b"0")], close=asked.last)
    return _allowed(asked, disk)


def _allowed(asked: Asked, disk: Resource) -> Answer:
    about: Headers = [(b"ETag", disk.etag), (b"Accept-Ranges", b"bytes")]
    match, none_match = asked.headers.get(b"if-match"), asked.headers.get(b"if-none-match")
    if match is not None and not _names(match, disk.etag, strong=True):
        return Answer(412, [*about, (b"Content-Length", b"0")], close=asked.last)
    if none_match is not None and _names(none_match, disk.etag, strong=False):
        return Answer(304, about, close=asked.last)
    whole = 0, disk.size_bytes
    found = None
    # Section 14.2: Range is defined for GET alone; 13.1.5: another version's range is answered with the whole.
    if asked.method == b"GET" and asked.headers.get(b"if-range", disk.etag).strip() == disk.etag:
        try:
            found = parse_range(asked.headers.get(b"range"), disk.size_bytes)
        except NotSatisfiable:
            headers = [*about, (b"Content-Range", b"bytes */%d" % disk.size_bytes), (b"Content-Length", b"0")]
            return Answer(416, headers, close=asked.last)
    start, end = found or whole
    headers = [*about, (b"Content-Type", b"application/octet-stream"), (b"Content-Length", b"%d" % (end - start))]
    if found is not None:
        headers.append((b"Content-Range", b"bytes %d-%d/%d" % (start, end - 1, disk.size_bytes)))
    body = (start, end) if asked.method == b"GET" else None
    return Answer(206 if found is not None else 200, headers, body, close=asked.last)


def _names(header: bytes, etag: bytes, *, strong: bool) -> bool:
    """Whether a list of entity tags has ours; ``*`` is any (section 8.8.3.2 for weak ones)."""
    if header.strip() == b"*":
        return True
    tags = _TAGS.findall(header)
    return etag in (tags if strong else [tag.removeprefix(b"W/") for tag in tags])
