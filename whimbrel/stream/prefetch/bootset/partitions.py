"""Where on a disk file systems may begin: MBR with logical partitions, GPT (UEFI 2.10, 5.3), or the disk itself."""

from __future__ import annotations

import struct
from typing import Final

from whimbrel.stream.prefetch.bootset.view import Unreadable, View

SECTOR_BYTES: Final = 512
MOST: Final = 64
EXTENDED: Final = (0x05, 0x0F, 0x85)
PROTECTIVE: Final = 0xEE
_ENTRY: Final = struct.Struct("<B3xB3xII")
"""Flag, type, first sector, sectors."""


def partitions(view: View) -> list[int]:
    """Offsets in bytes, in the order of the table; the disk's begin comes last. Raises Absent."""
    found: list[int] = []
    try:
        table = _entries(view, 0)
        if any(kind == PROTECTIVE for kind, _ in table):
            found += _gpt(view)
        else:
            for kind, sector in table:
                found += _logical(view, sector) if kind in EXTENDED else [sector]
    except Unreadable:
        pass
    return [*[sector * SECTOR_BYTES for sector in found if sector][:MOST], 0]


def _entries(view: View, sector: int) -> list[tuple[int, int]]:
    """Type and first sector of the entries of a boot record that are in use."""
    raw = view.read(sector * SECTOR_BYTES, SECTOR_BYTES)
    if raw[510:] != b"\x55\xaa":
        raise Unreadable("no boot record")
    entries = (_ENTRY.unpack_from(raw, 446 + 16 * number) for number in range(4))
    return [(kind, first) for flag, kind, first, count in entries if kind and count and flag in {0, 0x80}]


def _logical(view: View, extended: int) -> list[int]:
    """First sectors of the partitions in an extended one: a chain of boot records, relative to its begin."""
    found: list[int] = []
    at = extended
    for _ in range(MOST):
        following = 0
        for kind, first in _entries(view, at):
            if kind in EXTENDED:
                following = first
            else:
                found.append(at + first)
        if not following:
            break
        at = extended + following
    return found


def _gpt(view: View) -> list[int]:
    head = view.read(SECTOR_BYTES, 92)
    if head[:8] != b"EFI PART":
        raise Unreadable("no GPT")
    at, count, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096:
        raise Unreadable("a GPT with strange entries")
    raw = view.read(at * SECTOR_BYTES, min(count, MOST) * size)
    return [
        int(struct.unpack_from("<Q", raw, place + 32)[0])
        for place in range(0, len(raw), size)
        if raw[place : place + 16] != bytes(16)
    ]
