"""The Range header of RFC 9110, section 14, for one range."""

from __future__ import annotations

import re
from typing import Final

_ONE_RANGE: Final = re.compile(
    rb"bytes[ \t]*=[ \t]*(?:([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19}))[ \t]*", re.IGNORECASE
)


class NotSatisfiable(Exception):
    """No byte of the range exists: 416."""


def parse_range(header: bytes | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and end (without) of what is asked for; None: the whole, as without the header.

    Other units, several ranges and nonsense are ignored, as section 14.2 lets a server do. Raises NotSatisfiable.
    """
    found = _ONE_RANGE.fullmatch(header.strip()) if header is not None else None
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        length = min(int(suffix), size_bytes)
        if not length:
            raise NotSatisfiable
        return size_bytes - length, size_bytes
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size_bytes:
        raise NotSatisfiable
    return start, min(int(last) + 1, size_bytes) if last else size_bytes
