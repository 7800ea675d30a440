"""Brings chunks from the source: what somebody waits for at once, the rest in the background behind it.

Demand has connections of its own, one thread each. The background has one thread and one connection, keeps at most a
window of bytes in flight, and holds back while a demand is open or ended less than ``LINGER_S`` ago: a guest that
misses in a row asks again at once, and would find the link taken. Then only what the order calls urgent is sent, a
little at a time; and so that a guest that misses without end does not stop the hydration, one request of any kind
passes every ``LONGEST_HOLD_S``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from whimbrel.dataplane.governor import Governor, Priority, Share
from whimbrel.errors import WhimbrelError
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice, BlockLane
from whimbrel.stream.chunkmap import Run
from whimbrel.stream.hydration import Order
from whimbrel.stream.source import Source, Stopped
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.store import Claim, Store
from whimbrel.stream.window import Window

DEMAND_LANES: Final = 4
DEMAND_RUN_BYTES: Final = 1 << 20
LINGER_S: Final = 0.002
LONGEST_HOLD_S: Final = 0.05
URGENT_BYTES: Final = 128 << 10
"""In flight while a demand is open: what the order is sure of saves more misses than this delays them."""
IDLE_S: Final = 0.2
HOLE_BATCH_CHUNKS: Final = 1024
HOLES_FIRST_S: Final = 5.0
"""So long the background waits for the source's holes, in order not to fetch zeros."""
TARGET_PAUSE_S: Final = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _InFlight:
    claim: Claim
    buffer: memoryview
    sent_at: float


class Fetcher:
    """Made around a store, which it serves from now on; ``start`` and ``stop`` once each."""

    def __init__(
        self,
        store: Store,
        source: Source,
        order: Order,
        *,
        demand_lanes: int = DEMAND_LANES,
        window: Window | None = None,
        governor: Governor | None = None,
        background: bool = True,
    ) -> None:
        self.store = store
        self.source = source
        self.statistics = Statistics()
        self.window = window or Window()
        self._order = order
        governor = governor or Governor()
        self._demand_share: Share = governor.share(Priority.MISS)
        self._background_share: Share = governor.share(Priority.HYDRATION)
        self._bandwidth: float | None = None
        self._changed = threading.Condition()
        self._demand: deque[int] = deque()
        self._queued: set[int] = set()
        self._demand_open = 0
        self._demand_ended = 0.0
        self._background_sent = 0.0
        self._paused = not background
        self._stopping = False
        self._proposed: Run | None = None
        self._expected: deque[Run] = deque()
        self._holes_known = False
        self._began = time.monotonic()
        self._target_error: WhimbrelError | None = None
        self._threads = [threading.Thread(target=self._serve_demand, name=f"demand-{n}") for n in range(demand_lanes)]
        self._threads.append(threading.Thread(target=self._hydrate, name="background"))
        self._threads.append(threading.Thread(target=self._find_holes, name="holes"))
        store.want = self.want
        source.on_lost(store.fail_waiters)

    def start(self) -> None:
        """Begin to fetch."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """End all threads; what is in flight is given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.source.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def want(self, chunks: Iterable[int]) -> None:
        """Somebody waits for these chunks."""
        with self._changed:
            fresh = [chunk for chunk in chunks if chunk not in self._queued]
            self._demand.extend(fresh)
            self._queued.update(fresh)
            self._changed.notify_all()

    def expect(self, first: int, last: int) -> None:
        """Somebody waits for these chunks without hurry: they are what the background brings next."""
        self._expected.append((first, last))
        with self._changed:
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether the background rests."""
        return self._paused

    @property
    def holes_known(self) -> bool:
        """Whether the source's holes have all been found."""
        return self._holes_known

    @property
    def target_error(self) -> WhimbrelError | None:
        """Why the target did not take the last data; None once all is there, for others may have been quicker."""
        return self._target_error if self.store.map.missing_chunks else None

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """The background's limit; None: none."""
        return self._bandwidth

    def pause(self, paused: bool) -> None:
        """Let the background rest, or go on. Demand is always served."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Limit the background; None: no limit. Raises ValueError unless positive."""
        self._background_share.set_limit(bytes_per_s)
        self._bandwidth = bytes_per_s
        with self._changed:
            self._changed.notify_all()

    def pass_background(self, count: int) -> bool:
        """Wait until the background may ask for so many bytes, for who fetches on its behalf; False: the end."""
        return self._background_share.take(count, lambda: self._stopping)

    def _land(self, claim: Claim, data: memoryview | None) -> int:
        """Bytes landed. A target that cannot take them (full) is tried again after a pause, as is an absent source."""
        try:
            landed = self.store.land(claim, data)
        except WhimbrelError as error:
            log.warning("target.failed", extra={"error": str(error)})
            self._target_error = error
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, TARGET_PAUSE_S)
            if self._stopping:
                raise Stopped from error
            return 0
        self._target_error = None
        return landed

    # Demand

    def _serve_demand(self) -> None:
        lane: BlockLane | None = None
        device: BlockDevice | None = None
        buffer = memoryview(bytearray(max(DEMAND_RUN_BYTES, self.store.chunk_bytes)))
        with contextlib.suppress(Stopped):
            while True:
                # Before there is a demand: a handshake takes some round trips, which a miss would have to wait for.
                lane, device = (lane, device) if lane is not None else self.source.lane()
                claim = self._next_demand()
                if claim is None:
                    return
                try:
                    self._fetch_now(lane, claim, buffer)
                except WhimbrelError as error:
                    self.store.abandon(claim)
                    log.warning("demand.failed", extra={"error": str(error)})
                    lane = None
                    self.source.failed(device, error)
                except BaseException:
                    self.store.abandon(claim)
                    raise
                finally:
                    self._demand_done()

    def _fetch_now(self, lane: BlockLane, claim: Claim, buffer: memoryview) -> None:
        start, length = self.store.byte_range(claim)
        self._demand_share.take(length, lambda: self._stopping)
        lane.submit_read(start, buffer[:length])
        lane.reap()
        self.source.worked()
        landed = self._land(claim, buffer[:length])
        self.statistics.add(demand_bytes=length, dropped_bytes=length - landed)

    def _next_demand(self) -> Claim | None:
        """The next claim to fetch, with its neighbours if they are wanted too; counted as open. None: the end."""
        longest = max(DEMAND_RUN_BYTES // self.store.chunk_bytes, 1)
        while True:
            with self._changed:
                while not self._demand and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return None
                first = last = self._demand.popleft()
                self._queued.discard(first)
                while self._demand and self._demand[0] == last + 1 and last + 1 - first < longest:
                    last = self._demand.popleft()
                    self._queued.discard(last)
                self._demand_open += 1
            claim = self.store.claim(first, last + 1)
            if claim is None:
                self._demand_done()
                continue
            # Runs with gaps: what this claim does not cover is wanted by itself.
            self._requeue(claim.last, last + 1)
            return claim

    def _requeue(self, first: int, last: int) -> None:
        rest = [chunk for chunk in range(first, last) if not self.store.map.is_local(chunk, chunk + 1)]
        if rest:
            with self._changed:
                fresh = [chunk for chunk in rest if chunk not in self._queued]
                self._demand.extendleft(reversed(fresh))
                self._queued.update(fresh)
                self._changed.notify_all()

    def _demand_done(self) -> None:
        with self._changed:
            self._demand_open -= 1
            self._demand_ended = time.monotonic()
            self._changed.notify_all()

    # Background

    def _hydrate(self) -> None:
        with contextlib.suppress(Stopped):
            while not self._stopping:
                if not self._work_left():
                    continue
                lane, device = self.source.lane()
                flying: dict[int, _InFlight] = {}
                try:
                    self._pump(lane, flying)
                except WhimbrelError as error:
                    log.warning("background.failed", extra={"error": str(error)})
                    self.source.failed(device, error)
                finally:
                    lane.close()
                    for each in flying.values():
                        self.store.abandon(each.claim)

    def _work_left(self) -> bool:
        with self._changed:
            if self.store.map.missing_chunks and not self._paused:
                return True
            self._changed.wait(IDLE_S)
            return False

    def _pump(self, lane: BlockLane, flying: dict[int, _InFlight]) -> None:
        """Keep the window full until nothing is missing."""
        while not self._stopping:
            in_flight = sum(len(each.buffer) for each in flying.values())
            if self._may_send(in_flight):
                if self._send_next(lane, flying):
                    continue
            elif self._may_send_urgent(in_flight) and self._send_urgent(lane, flying):
                continue
            if flying:
                self._take_one(lane, flying)
            elif not self.store.map.missing_chunks:
                return
            else:
                with self._changed:
                    self._changed.wait(IDLE_S if self._paused else LINGER_S)

    def _may_send(self, in_flight: int) -> bool:
        if self._paused or not self.store.map.missing_chunks:
            return False
        if not self._holes_known and time.monotonic() - self._began < HOLES_FIRST_S:
            return False
        if in_flight and in_flight + self._request_bytes() > self.window.size_bytes:
            return False
        now = time.monotonic()
        return not self._busy(now) or now - self._background_sent > LONGEST_HOLD_S

    def _busy(self, now: float) -> bool:
        return bool(self._demand_open or self._demand) or now - self._demand_ended < LINGER_S

    def _may_send_urgent(self, in_flight: int) -> bool:
        if self._paused or self._proposed is not None or not self.store.map.missing_chunks:
            return False
        return in_flight + self.store.chunk_bytes <= min(URGENT_BYTES, self.window.size_bytes)

    def _request_bytes(self) -> int:
        chunk = self.store.chunk_bytes
        return max(self.window.request_bytes // chunk * chunk, chunk)

    def _send_next(self, lane: BlockLane, flying: dict[int, _InFlight]) -> bool:
        longest = self._request_bytes() // self.store.chunk_bytes
        run = self._proposed or self._next_expected(longest) or self._order.next_run(longest)
        self._proposed = run
        if run is None or self._background_share.reserve((run[1] - run[0]) * self.store.chunk_bytes) > 0:
            return False
        self._proposed = None
        return self._send(lane, flying, run)

    def _next_expected(self, longest: int) -> Run | None:
        """Each chunk once: what is lost on its way is wanted by the store, for somebody waits for it."""
        while self._expected:
            first, last = self._expected.popleft()
            run = self.store.map.missing_run(first, last, longest)
            if run is not None:
                if run[1] < last:
                    self._expected.appendleft((run[1], last))
                return run
        return None

    def _send_urgent(self, lane: BlockLane, flying: dict[int, _InFlight]) -> bool:
        run = self._order.next_urgent(1)
        if run is None:
            return False
        if self._background_share.reserve(self.store.chunk_bytes) > 0:
            self._proposed = run
            return False
        return self._send(lane, flying, run)

    def _send(self, lane: BlockLane, flying: dict[int, _InFlight], run: Run) -> bool:
        claim = self.store.claim(*run)
        if claim is None:
            return False
        if claim.last < run[1]:
            self._proposed = claim.last, run[1]  # somebody else's chunk lies in between
        start, length = self.store.byte_range(claim)
        buffer = memoryview(bytearray(length))
        try:
            cookie = lane.submit_read(start, buffer)
        except BaseException:
            self.store.abandon(claim)
            raise
        self._background_sent = time.monotonic()
        flying[cookie] = _InFlight(claim, buffer, self._background_sent)
        return True

    def _take_one(self, lane: BlockLane, flying: dict[int, _InFlight]) -> None:
        done = lane.reap()
        now = time.monotonic()
        self.source.worked()
        each = flying.pop(done.cookie)
        length = len(each.buffer)
        self.window.done(length, now - each.sent_at, now)
        landed = self._land(each.claim, each.buffer)
        self.statistics.add(background_bytes=length, dropped_bytes=length - landed)

    # Holes

    def _find_holes(self) -> None:
        """Chunks that the source knows to be zeros need no fetch. Asked piece by piece, in the background."""
        at = 0
        with contextlib.suppress(Stopped):
            while not self._stopping and not self._holes_known:
                try:
                    for extent in self.source.extents(at):
                        if self._stopping:
                            return
                        if extent.zero:
                            self._land_hole(extent)
                        at = extent.end
                    self._holes_known = True
                except WhimbrelError as error:
                    log.warning("holes.failed", extra={"error": str(error), "offset": at})

    def _land_hole(self, extent: Extent) -> None:
        chunk = self.store.chunk_bytes
        first = -(-extent.start // chunk)
        end = extent.end
        last = self.store.map.chunks if end == self.store.size_bytes else end // chunk
        while first < last:
            batch = min(first + HOLE_BATCH_CHUNKS, last)
            while (claim := self.store.claim(first, batch)) is not None:
                self.statistics.add(hole_bytes=self._land(claim, None))
            first = batch
