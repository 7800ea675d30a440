"""From block status descriptors to extents: pure functions over what NBD_CMD_BLOCK_STATUS answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from whimbrel.model.extent import Extent
from whimbrel.nbd import protocol as p
from whimbrel.nbd.fault import violation

Runs = Sequence[tuple[int, int]]
"""(length in bytes, flags) one after the other, as the server tells them."""


def runs_within(address: str, runs: Runs, limit: int, reach: int) -> list[tuple[int, int]]:
    """The first ``reach`` bytes of runs that answer a question for ``limit`` bytes; only the last may exceed that.

    Raises Unavailable (protocol violation) for a run of zero length or one that starts beyond ``limit``.
    """
    kept: list[tuple[int, int]] = []
    position = 0
    for length, flags in runs:
        if not length or position >= limit:
            raise violation(address, "a block status descriptor of zero length or beyond the range", length=length)
        if position < reach:
            kept.append((min(length, reach - position), flags))
        position += length
    return kept


def within(extents: Iterable[Extent], start: int, end: int) -> Iterator[Extent]:
    """The parts of the extents between ``start`` and ``end``."""
    for extent in extents:
        first, last = max(extent.start, start), min(extent.end, end)
        if last > first:
            yield Extent(first, last - first, extent.zero)


def allocation(start: int, runs: Runs) -> Iterator[Extent]:
    """Extents from ``start`` on by base:allocation; a hole alone does not promise zeros, only NBD_STATE_ZERO does."""
    for length, flags in runs:
        yield Extent(start, length, bool(flags & p.STATE_ZERO))
        start += length


def overlay(start: int, dirty: Sequence[Runs], zeros: Runs | None) -> Iterator[Extent]:
    """The extents that any of the ``dirty`` runs marks, zero where ``zeros`` (base:allocation) says so.

    All runs begin at ``start`` and cover the same number of bytes.
    """
    streams = [iter(runs) for runs in (*dirty, *([zeros] if zeros is not None else []))]
    heads = [next(stream, None) for stream in streams]
    while None not in heads:
        current = [head for head in heads if head is not None]
        step = min(length for length, _ in current)
        if any(flags & p.STATE_DIRTY for _, flags in current[: len(dirty)]):
            yield Extent(start, step, zeros is not None and bool(current[-1][1] & p.STATE_ZERO))
        start += step
        heads = [
            (length - step, flags) if length > step else next(stream, None)
            for (length, flags), stream in zip(current, streams, strict=True)
        ]
