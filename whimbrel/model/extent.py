"""Extents: runs of bytes of a disk that share a property."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """``length`` bytes from ``start``; ``zero`` means that they are known to read as zeros."""

    start: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        """First byte after the extent."""
        return self.start + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of the same kind in an ordered stream; empty extents are dropped."""
    held: Extent | None = None
    for extent in extents:
        if extent.length == 0:
            continue
        if held is not None and held.end == extent.start and held.zero == extent.zero:
            held = Extent(held.start, held.length + extent.length, held.zero)
            continue
        if held is not None:
            yield held
        held = extent
    if held is not None:
        yield held


def align(extents: Iterable[Extent], unit_bytes: int, size_bytes: int) -> Iterator[Extent]:
    """Widen an ordered stream of data extents to whole units (the last may be cut at ``size_bytes``), without overlap.

    A widened piece is never marked zero: its rim was not known to be zero.
    """
    end = 0
    for extent in extents:
        start = max(extent.start - extent.start % unit_bytes, end)
        stop = min(-(-extent.end // unit_bytes) * unit_bytes, size_bytes)
        if stop > start:
            exact = start == extent.start and stop == extent.end
            yield Extent(start, stop - start, extent.zero and exact)
            end = stop


def total_bytes(extents: Iterable[Extent]) -> int:
    """Sum of the lengths."""
    return sum(extent.length for extent in extents)
