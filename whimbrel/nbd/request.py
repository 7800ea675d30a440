"""A request on its way: what is still missing before it is complete."""

from __future__ import annotations

from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.ports.block import Completion, Operation

ZEROES: Final = memoryview(bytes(1 << 20))


class Whole:
    """What the caller submitted, while more than one request on the wire serves it."""

    __slots__ = ("completion", "error", "parts")

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.parts = 1
        """Wire requests without an answer, plus one as long as not all of them are sent."""
        self.error: WhimbrelError | None = None


class Request:
    """One request on the wire. ``buffer`` is where a read's bytes go; None for all others."""

    __slots__ = ("buffer", "descriptors", "error", "length", "offset", "operation", "owner", "pieces")

    def __init__(
        self,
        operation: Operation | str,
        offset: int,
        length: int,
        buffer: memoryview | None,
        owner: Completion | Whole | None,
    ) -> None:
        self.operation = operation
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.owner = owner
        """What it serves: a submission, a part of one, or (None) a call that waits for this very request."""
        self.error: tuple[int, str] | None = None
        self.pieces: list[tuple[int, int]] | None = None
        self.descriptors: dict[int, list[tuple[int, int]]] | None = None

    def place(self, offset: int, length: int) -> memoryview | None:
        """Where ``length`` bytes at ``offset`` of the export belong, noted as filled; None if not asked for."""
        first = offset - self.offset
        if self.buffer is None or not length or first < 0 or first + length > self.length:
            return None
        if self.pieces is None:
            self.pieces = []
        self.pieces.append((first, length))
        return self.buffer[first : first + length]

    def filled(self) -> bool:
        """Whether the pieces of a chunked reply cover the read exactly, each byte once."""
        pieces = self.pieces
        if pieces is None:
            return False
        end = 0
        for first, length in pieces if len(pieces) == 1 else sorted(pieces):
            if first != end:
                return False
            end += length
        return end == self.length


def clear(view: memoryview) -> None:
    """Fill ``view`` with zeros."""
    step = len(ZEROES)
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        piece[:] = ZEROES[: len(piece)]
