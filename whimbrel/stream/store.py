"""The target and its map: what the guest reads and writes, and what the fetcher lands, without ever mixing the two.

Rules (chunks only ever go from missing to local):

1. A local chunk belongs to the guest; no fetch touches it again. So reading and writing local chunks takes no lock.
2. A missing chunk is touched only by who **claims** it. A fetch claims before it asks the source, and owns the chunk
   until its data has landed; whoever else wants the chunk waits for that.
3. A write that covers a whole missing chunk needs no fetch. It takes the chunk from a fetch that is still on its way,
   whose data is then dropped; it waits for one that is landing (a local write, never the network).
4. A write to a part of a missing chunk is made once the chunk is local; ``needs`` names such chunks.
5. Before the guest's data goes to a chunk it is marked written, after the data is there it is marked local.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from whimbrel.errors import Unavailable, WhimbrelError
from whimbrel.model.extent import Extent
from whimbrel.stream.chunkmap import ChunkMap, Run

ZERO_BATCH_CHUNKS: Final = 1024
_ZEROS: Final = bytes(64 << 10)

Arrival = Callable[[WhimbrelError | None], None]
"""Called once: the chunks are local (None), or will not be (the error). Must be quick and take no lock of the store."""


class Target(Protocol):
    """The target's bytes; FileDevice has these methods. Each may raise a WhimbrelError."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        ...

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        ...

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        """Make a range read as zeros."""
        ...

    def flush(self) -> None:
        """Wait until all that was written is on stable storage."""
        ...

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Data and holes."""
        ...


class Claim:
    """The right to fill missing chunks; some may be lost to a write before the data lands."""

    __slots__ = ("first", "landing", "last")

    def __init__(self, first: int, last: int, *, landing: bool = False) -> None:
        self.first = first
        self.last = last
        self.landing = landing


class _Waiter:
    __slots__ = ("arrival", "left")

    def __init__(self, arrival: Arrival, left: int) -> None:
        self.arrival = arrival
        self.left = left


class Store:
    """Thread-safe. ``want`` is told of missing chunks that somebody waits for; the fetcher sets it."""

    def __init__(self, target: Target, chunkmap: ChunkMap) -> None:
        self.target = target
        self.map = chunkmap
        self.size_bytes = chunkmap.size_bytes
        self.chunk_bytes = chunkmap.chunk_bytes
        self.want: Callable[[Iterable[int]], None] = lambda _chunks: None
        self.before_sync: Callable[[], int] = lambda: 0
        """Called before the target is synced; its answer is given to ``after_sync``. The protection sets both."""
        self.after_sync: Callable[[int], None] = lambda _token: None
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._claims: dict[int, Claim] = {}
        self._waiters: dict[int, list[_Waiter]] = {}
        self._flush_lock = threading.Lock()
        self._flushes_asked = 0
        self._flushes_done = 0
        self._unsafe: WhimbrelError | None = None

    # What the guest does

    def span(self, offset: int, length: int) -> Run:
        """The chunks that a range touches."""
        return offset // self.chunk_bytes, -(-(offset + length) // self.chunk_bytes)

    def missing(self, offset: int, length: int) -> list[int]:
        """The chunks to fetch before a range can be read."""
        first, last = self.span(offset, length)
        return [] if self.map.is_local(first, last) else self._missing_of(range(first, last))

    def needs(self, offset: int, length: int) -> list[int]:
        """The chunks to fetch before a range can be written or zeroed: at most the one at either end."""
        first, last = self.span(offset, length)
        if self.map.is_local(first, last):
            return []
        whole_first, whole_last = self._whole(offset, length)
        return self._missing_of({chunk for chunk in (first, last - 1) if not whole_first <= chunk < whole_last})

    def when_local(self, chunks: Iterable[int], arrival: Arrival, *, demand: bool = True) -> None:
        """Call ``arrival`` once all of ``chunks`` are local: at once, or later from another thread.

        Without ``demand`` nothing is hurried for it; the background brings the chunks when it comes to them.
        """
        with self._lock:
            missing = self._missing_of(chunks)
            waiter = _Waiter(arrival, len(missing))
            for chunk in missing:
                self._waiters.setdefault(chunk, []).append(waiter)
            wanted = [chunk for chunk in missing if chunk not in self._claims]
        if not missing:
            arrival(None)
        elif wanted and demand:
            self.want(wanted)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from chunks that are all local."""
        self.target.read_into(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write; ``needs`` of the range must be empty. Raises what the target raises (QuotaExceeded, Unavailable)."""
        with _Writing(self, offset, len(data)):
            self.target.write_from(offset, data)

    def zero(self, offset: int, length: int, *, may_punch: bool = True) -> None:
        """Make a range zeros; ``needs`` of the range must be empty. Missing chunks need no fetch. Raises as write."""
        end = offset + length
        while offset < end:
            stop = min(end, (offset // self.chunk_bytes + ZERO_BATCH_CHUNKS) * self.chunk_bytes)
            with _Writing(self, offset, stop - offset):
                self.target.zero(offset, stop - offset, may_punch=may_punch)
            offset = stop

    def trimmable(self, offset: int, length: int) -> tuple[int, int]:
        """The part of a range (offset, length) that ``trim`` makes zeros: all but missing chunks covered partly."""
        end = offset + length
        for chunk in self.needs(offset, length):
            if chunk == offset // self.chunk_bytes:
                offset = min((chunk + 1) * self.chunk_bytes, end)
            else:
                end = max(chunk * self.chunk_bytes, offset)
        return offset, end - offset

    def trim(self, offset: int, length: int) -> None:
        """The guest no longer wants these bytes: zeros from now on, where ``trimmable``."""
        offset, length = self.trimmable(offset, length)
        if length:
            self.zero(offset, length)

    def flush(self) -> None:
        """Wait until all writes that ended before this call survive a crash of the host.

        One flush may serve several callers. After one that failed every later one fails too: the kernel forgets what
        it could not write. Raises what the target raises.
        """
        with self._lock:
            self._flushes_asked += 1
            mine = self._flushes_asked
        with self._flush_lock:
            if self._flushes_done >= mine:
                return
            if self._unsafe is not None:
                raise type(self._unsafe)(self._unsafe.message, action=self._unsafe.action)
            with self._lock:
                covers = self._flushes_asked
            changes = self.map.take_changes()
            try:
                token = self.before_sync()
                self.target.flush()
                self.map.harden(changes)
            except WhimbrelError as error:
                self.map.give_back(changes)
                self._unsafe = Unavailable(
                    f"the target could not be synced: {error.message}",
                    action="look at the target's storage; what was written since the last flush may be lost",
                )
                raise
            self._flushes_done = covers
            self.after_sync(token)

    # What the fetcher does

    def claim(self, first: int, last: int) -> Claim | None:
        """Claim the first run of missing chunks in a range that nobody has claimed; None if there is none."""
        with self._lock:
            while (run := self.map.missing_run(first, last)) is not None:
                start = next((chunk for chunk in range(*run) if chunk not in self._claims), None)
                if start is None:
                    first = run[1]
                    continue
                end = next((chunk for chunk in range(start, run[1]) if chunk in self._claims), run[1])
                claim = Claim(start, end)
                self._claims.update(dict.fromkeys(range(start, end), claim))
                return claim
        return None

    def byte_range(self, claim: Claim) -> tuple[int, int]:
        """Offset and length of a claim in bytes."""
        start = claim.first * self.chunk_bytes
        return start, min(claim.last * self.chunk_bytes, self.size_bytes) - start

    def land(self, claim: Claim, data: memoryview | None) -> int:
        """Put the source's bytes (None: zeros) where no write was faster; how many bytes landed.

        The claim is over in any case. Raises what the target raises; the chunks are then missing still.
        """
        with self._lock:
            claim.landing = True
            owned = [chunk for chunk in range(claim.first, claim.last) if self._claims.get(chunk) is claim]
        start, length = self.byte_range(claim)
        landed = 0
        done: list[Run] = []
        try:
            for first, last in _runs(owned):
                at = first * self.chunk_bytes
                count = min(last * self.chunk_bytes, self.size_bytes) - at
                self._fill(at, None if data is None else data[at - start : at - start + count], count)
                done.append((first, last))
                landed += count
        finally:
            self._release(claim, done)
        assert landed <= length
        return landed

    def abandon(self, claim: Claim) -> None:
        """The fetch failed: others may claim the chunks; who waits for them makes them wanted again."""
        self._release(claim, [])

    def fail_waiters(self, error: WhimbrelError) -> None:
        """Tell everybody who waits for a chunk that it will not come."""
        with self._lock:
            waiters = list({id(waiter): waiter for held in self._waiters.values() for waiter in held}.values())
            self._waiters.clear()
        for waiter in waiters:
            waiter.arrival(error)

    @property
    def waiting_chunks(self) -> int:
        """Missing chunks that somebody waits for."""
        return len(self._waiters)

    def _missing_of(self, chunks: Iterable[int]) -> list[int]:
        return [chunk for chunk in sorted(chunks) if not self.map.is_local(chunk, chunk + 1)]

    def _whole(self, offset: int, length: int) -> Run:
        """The chunks that a range covers whole; the disk's last chunk ends with the disk."""
        end = offset + length
        last = -(-end // self.chunk_bytes) if end == self.size_bytes else end // self.chunk_bytes
        first = -(-offset // self.chunk_bytes)
        return first, max(first, last)

    def _fill(self, offset: int, data: memoryview | None, length: int) -> None:
        if data is None or all_zero(data):
            # Not skipped where the file has a hole: after a crash junk may lie in a missing chunk.
            self.target.zero(offset, length, may_punch=True)
        else:
            self.target.write_from(offset, data)

    def _seize(self, first: int, last: int) -> Claim | None:
        """Claim all missing chunks of a range for a write that covers them; None if all are local."""
        with self._lock:
            while True:
                missing = [chunk for run in self._missing_runs(first, last) for chunk in range(*run)]
                if not missing:
                    return None
                held = (self._claims.get(chunk) for chunk in missing)
                if not any(claim is not None and claim.landing for claim in held):
                    claim = Claim(first, last, landing=True)
                    self._claims.update(dict.fromkeys(missing, claim))
                    return claim
                self._freed.wait()

    def _missing_runs(self, first: int, last: int) -> Iterator[Run]:
        while (run := self.map.missing_run(first, last)) is not None:
            yield run
            first = run[1]

    def _release(self, claim: Claim, local: list[Run]) -> None:
        """End a claim; ``local`` are the chunks of it that are now there."""
        ready: list[_Waiter] = []
        with self._lock:
            for first, last in local:
                self.map.mark_local(first, last)
                for chunk in range(first, last) if self._waiters else ():
                    for waiter in self._waiters.pop(chunk, ()):
                        waiter.left -= 1
                        if not waiter.left:
                            ready.append(waiter)
            orphans = []
            for chunk in range(claim.first, claim.last):
                if self._claims.get(chunk) is claim:
                    del self._claims[chunk]
                    if chunk in self._waiters:
                        orphans.append(chunk)
            self._freed.notify_all()
        for waiter in ready:
            waiter.arrival(None)
        if orphans:
            self.want(orphans)


class _Writing:
    """The bracket around a change of the target by the guest."""

    __slots__ = ("_claim", "_first", "_last", "_store")

    def __init__(self, store: Store, offset: int, length: int) -> None:
        first, last = store.span(offset, length)
        self._store = store
        self._first, self._last = store._whole(offset, length)
        self._claim = None if store.map.is_local(first, last) else store._seize(self._first, self._last)
        store.map.mark_written(first, last)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._claim is not None:
            self._store._release(self._claim, [] if kind else [(self._first, self._last)])


def all_zero(data: memoryview) -> bool:
    """Whether every byte is zero; quick to say no."""
    if data[0] or data[-1]:
        return False
    # Comparing bytes is a memcmp, comparing views is not.
    return all(
        data[at : at + len(_ZEROS)].tobytes() == _ZEROS[: len(data) - at] for at in range(0, len(data), len(_ZEROS))
    )


def _runs(chunks: list[int]) -> Iterator[Run]:
    start = 0
    for index, chunk in enumerate(chunks):
        if index + 1 == len(chunks) or chunks[index + 1] != chunk + 1:
            yield chunks[start], chunk + 1
            start = index + 1
