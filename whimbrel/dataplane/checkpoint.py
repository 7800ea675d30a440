"""What is finished and what of it is durable: completions in any order become a cursor that only grows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from whimbrel.dataplane.digests import REGION_BYTES, REGION_UNITS, UNIT_BYTES, unit_count, zero_digests
from whimbrel.dataplane.manifest import Manifest
from whimbrel.dataplane.plan import Request

INTERVAL_S = 1.0
INTERVAL_BYTES = 256 << 20


class Ledger:
    """Collects the requests whose writes were acknowledged. Thread-safe."""

    def __init__(self, cursor_bytes: int) -> None:
        self._lock = threading.Lock()
        self._next = 0
        self._cursor_bytes = cursor_bytes
        self._early: dict[int, int] = {}
        self._finished: list[tuple[Request, bytes | None]] = []
        self._bytes = 0
        self.finished = 0
        """Number of requests that are finished."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of data finished and not yet taken by a checkpoint."""
        return self._bytes

    def finish(self, request: Request, digests: bytes | None) -> None:
        """A request's writes were acknowledged; ``digests`` None: all its units are zeros."""
        with self._lock:
            self.finished += 1
            self._finished.append((request, digests))
            self._early[request.number] = request.end
            while (end := self._early.pop(self._next, None)) is not None:
                self._cursor_bytes = end
                self._next += 1
            if digests is not None:
                self._bytes += request.length

    def collect(self) -> tuple[list[tuple[Request, bytes | None]], int]:
        """What finished since the last call, and the offset below which all is finished."""
        with self._lock:
            finished, self._finished, self._bytes = self._finished, [], 0
            return finished, self._cursor_bytes


class Checkpointer:
    """Makes finished work durable, always in this order: flush the target, record digests, save the cursor."""

    def __init__(self, ledger: Ledger, manifest: Manifest, flush: Callable[[], None]) -> None:
        self._ledger = ledger
        self._manifest = manifest
        self._flush = flush

    def save(self, *, complete: bool = False) -> None:
        """One checkpoint; raises what the target's flush or the manifest raises, and then nothing was recorded."""
        finished, cursor_bytes = self._ledger.collect()
        if not finished and not complete:
            return
        self._flush()
        self._record(finished)
        self._manifest.checkpoint(self._manifest.size_bytes if complete else cursor_bytes, complete=complete)

    def _record(self, finished: list[tuple[Request, bytes | None]]) -> None:
        """Neighbours together: the manifest's system calls are per run, and each may have to wait for the lanes."""
        manifest = self._manifest
        run: list[bytes] = []
        start = end = 0
        for request, digests in sorted(finished, key=_offset):
            first, count = request.offset // UNIT_BYTES, unit_count(request.length)
            if digests is None and (request.offset % REGION_BYTES == 0 or request.length > REGION_BYTES):
                # May be a whole region, which costs a byte. Shorter zeros join their neighbours.
                manifest.record_zeros(first, count)
                continue
            if run and (first != end or end - start >= REGION_UNITS):
                manifest.record(start, b"".join(run))
                run = []
            if not run:
                start = first
            run.append(zero_digests(first, count, manifest.size_bytes) if digests is None else digests)
            end = first + count
        if run:
            manifest.record(start, b"".join(run))


def _offset(entry: tuple[Request, bytes | None]) -> int:
    return entry[0].offset
