"""Block status of the target: what is allocated, and what is local."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from whimbrel.nbd import protocol as p
from whimbrel.stream.store import Store

MAX_RUNS: Final = 4096

Runs = list[tuple[int, int]]
"""(length, flags), consecutive."""


def local_runs(store: Store, offset: int, length: int, *, one: bool) -> Runs:
    """``x-whimbrel:local``: bit 0 where the source is no longer needed."""
    found: Runs = []
    for start, end, local in _pieces(store, offset, offset + length):
        found.append((end - start, p.STATE_LOCAL if local else 0))
        if one or len(found) == MAX_RUNS:
            break
    return found


def allocation_runs(store: Store, offset: int, length: int, *, one: bool) -> Runs:
    """``base:allocation``: holes of local chunks read as zeros; what is missing counts as data, for it may be some."""
    found: Runs = []
    for start, end, local in _pieces(store, offset, offset + length):
        if not local:
            _add(found, end - start, 0)
            continue
        for extent in store.target.extents(start, end - start):
            _add(found, extent.length, p.STATE_HOLE | p.STATE_ZERO if extent.zero else 0)
            if len(found) > MAX_RUNS:
                return found[:MAX_RUNS]
        if one and len(found) > 1:
            break
    return found[:1] if one else found


def _add(runs: Runs, length: int, flags: int) -> None:
    if runs and runs[-1][1] == flags:
        runs[-1] = runs[-1][0] + length, flags
    else:
        runs.append((length, flags))


def _pieces(store: Store, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of chunks of one kind, cut to the range."""
    chunk, last = store.chunk_bytes, store.span(start, end - start)[1]
    while start < end:
        upto, local = store.map.local_run(start // chunk, last)
        stop = min(upto * chunk, end)
        yield start, stop, local
        start = stop
