"""Who reads: a guest (demand), or somebody who copies the whole image in the background (bulk).

librbd's ``migration execute`` and its import have a connection of their own, on which they ask for whole objects in
ascending order. A guest reads what it needs, and asks for a whole object when it writes to a part of one. Nothing in
the protocol tells the two apart, and the URL is the same for all, so a connection counts as bulk while all that it has
asked for looks like a copy; a single request that does not makes it a guest's for good. A guest that does nothing but
write in ascending order to objects that are missing is taken for a copy; it then gets what bulk gets.
"""

from __future__ import annotations

from typing import Final

SMALLEST_OBJECT_BYTES: Final = 512 << 10
LARGEST_OBJECT_BYTES: Final = 32 << 20
BULK_AFTER: Final = 4
"""So many whole objects in a row, and a guest that starts with a few copy-ups is not taken for bulk."""
DISORDER_OBJECTS: Final = 16
"""Copies keep some objects in flight, and their requests may overtake each other."""


class Reader:
    """One connection's past. ``known_bulk``: its address was named as one that only copies."""

    def __init__(self, size_bytes: int, *, known_bulk: bool = False) -> None:
        self._size_bytes = size_bytes
        self.known_bulk = known_bulk
        self._object_bytes: int | None = None
        self._highest = -1
        self._objects = 0
        self._guest = False

    @property
    def bulk(self) -> bool:
        """Whether it counts as bulk now."""
        return self.known_bulk or (not self._guest and self._objects >= BULK_AFTER)

    def note(self, start: int, end: int) -> bool:
        """The bytes from ``start`` up to ``end`` (without) are asked for; whether that is bulk."""
        if self._guest or not self._copies(start, end):
            self._guest = True
        else:
            self._objects += 1
            self._highest = max(self._highest, start)
        return self.bulk

    def _copies(self, start: int, end: int) -> bool:
        length = end - start
        if self._object_bytes is None:
            if not is_object(start, end):
                return False
            self._object_bytes = length
        size = self._object_bytes
        if start % size or (length != size and end != self._size_bytes):
            return False
        return start > self._highest - DISORDER_OBJECTS * size


def is_object(start: int, end: int) -> bool:
    """Whether a range may be a whole RADOS object: a power of two in size, at a multiple of it."""
    length = end - start
    return SMALLEST_OBJECT_BYTES <= length <= LARGEST_OBJECT_BYTES and not length & (length - 1) and not start % length
