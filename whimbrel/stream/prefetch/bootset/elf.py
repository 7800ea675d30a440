"""Which shared libraries a program names (System V ABI, ELF-64, little endian)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from whimbrel.stream.prefetch.bootset.view import Unreadable

MAGIC: Final = b"\x7fELF\x02\x01"
LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
NEEDED, STRINGS, STRINGS_SIZE, RPATH, RUNPATH = 1, 5, 10, 15, 29
SEGMENTS_MOST: Final = 64
DYNAMIC_MOST_BYTES: Final = 64 << 10
STRINGS_MOST_BYTES: Final = 1 << 20
_SEGMENT: Final = struct.Struct("<I4xQQ8xQ")
"""Type, offset in the file, address, bytes in the file."""

Read = Callable[[int, int], bytes]
"""Offset, length: bytes of the file."""


class Linked(NamedTuple):
    """What a program is to be loaded with."""

    interpreter: str | None
    libraries: tuple[str, ...]
    """Names, or paths."""
    directories: tuple[str, ...]
    """Where it says they are; may begin with ``$ORIGIN``."""


def linked(read: Read) -> Linked:
    """Raises Unreadable if the file is no such program, and what ``read`` raises."""
    head = read(0, 64)
    if len(head) < 64 or not head.startswith(MAGIC):
        raise Unreadable("no ELF-64")
    at = struct.unpack_from("<Q", head, 32)[0]
    size, count = struct.unpack_from("<HH", head, 54)
    raw = read(at, size * min(count, SEGMENTS_MOST))
    if size < _SEGMENT.size:
        raise Unreadable("strange segments")
    segments = [_SEGMENT.unpack_from(raw, place) for place in range(0, len(raw) - _SEGMENT.size + 1, size)]
    interpreter, values = None, list[tuple[int, int]]()
    for kind, offset, _, length in segments:
        if kind == INTERPRETER:
            interpreter = read(offset, min(length, 4096)).split(b"\0")[0].decode("utf-8", "replace")
        elif kind == DYNAMIC:
            dynamic = read(offset, min(length, DYNAMIC_MOST_BYTES))
            values = [struct.unpack_from("<QQ", dynamic, place) for place in range(0, len(dynamic) - 15, 16)]
    known = dict(values)
    if STRINGS not in known:
        return Linked(interpreter, (), ())
    strings = _strings(read, segments, known[STRINGS], known.get(STRINGS_SIZE, 0))

    def text(place: int) -> str:
        return strings[place : strings.find(b"\0", place)].decode("utf-8", "replace")

    libraries = tuple(text(value) for tag, value in values if tag == NEEDED)
    paths = [text(value) for tag, value in values if tag in {RPATH, RUNPATH}]
    return Linked(interpreter, libraries, tuple(each for path in paths for each in path.split(":") if each))


def _strings(read: Read, segments: list[tuple[int, ...]], address: int, length: int) -> bytes:
    for kind, offset, begin, size in segments:
        if kind == LOAD and begin <= address < begin + size:
            return read(offset + address - begin, min(length, STRINGS_MOST_BYTES))
    raise Unreadable("no strings")
