"""What RBD knows of an image's blocks, as streams of extents: first by whole objects, then exactly inside of them.

With object map and fast-diff the first look costs no request per object; the second asks only the objects that the
first one named. librbd's callback gives ``exists`` False for what became zero or was discarded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from whimbrel.model.extent import Extent, merge

WINDOW_BYTES = 16 << 30
"""Span of one call: few calls for a large image, and a bounded list of answers."""
FINE_BYTES = 1 << 30
"""Span of one exact look."""


class DiffSource(Protocol):
    """One call of librbd's ``diff_iterate``: (offset, length, exists) in order."""

    def __call__(self, offset: int, length: int, since: str | None, *, whole_object: bool) -> list[Any]:
        """The pieces that exist, or that differ from ``since``, inside the span."""
        ...


def differences(ask: DiffSource, since: str | None, start: int, length: int) -> Iterator[Extent]:
    """Ordered extents inside the span that differ from ``since`` (None: from nothing); ``zero`` where they are zeros.

    Raises what ``ask`` raises.
    """
    return merge(_fine(ask, since, start, length))


def _fine(ask: DiffSource, since: str | None, start: int, length: int) -> Iterator[Extent]:
    for run in merge(_coarse(ask, since, start, length)):
        for offset, span in _windows(run.start, run.length, FINE_BYTES):
            yield from _clipped(ask(offset, span, since, whole_object=False), offset, offset + span)


def _coarse(ask: DiffSource, since: str | None, start: int, length: int) -> Iterator[Extent]:
    for offset, span in _windows(start, length, WINDOW_BYTES):
        for piece in _clipped(ask(offset, span, since, whole_object=True), offset, offset + span):
            yield Extent(piece.start, piece.length)


def _windows(start: int, length: int, size: int) -> Iterator[tuple[int, int]]:
    for offset in range(start, start + length, size):
        yield offset, min(size, start + length - offset)


def _clipped(pieces: list[Any], start: int, end: int) -> Iterator[Extent]:
    at = start
    for offset, length, exists in sorted(pieces):
        begin, stop = max(offset, at), min(offset + length, end)
        if stop > begin:
            yield Extent(begin, stop - begin, zero=not exists)
            at = stop


def allocation(known: Iterator[Extent], start: int, end: int) -> Iterator[Extent]:
    """Fill the gaps between ordered extents that exist with zeros, so that the range is covered."""
    return merge(_filled(known, start, end))


def _filled(known: Iterator[Extent], start: int, end: int) -> Iterator[Extent]:
    at = start
    for extent in known:
        yield Extent(at, extent.start - at, zero=True)
        yield extent
        at = extent.end
    yield Extent(at, end - at, zero=True)
