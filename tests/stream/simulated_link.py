"""A guest, the background and the link between, on a simulated clock: hit rates of an order without waiting for them.

The link serves what is asked in the order asked, at ``rate`` bytes/s, ``delay_s`` there and back. Misses are asked for
at once; the background keeps a fixed window and holds back as the fetcher does (its constants are used). The guest
plays a trace in bursts and waits for each, as ``prefetch.replay`` does. No threads, no disk, no protocol: the figures
tell which order is better, and only the benchmark with the real server tells how good it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from whimbrel.stream.chunkmap import Run
from whimbrel.stream.fetcher import LINGER_S, LONGEST_HOLD_S, URGENT_BYTES
from whimbrel.stream.hydration import Order
from whimbrel.stream.prefetch.replay import bursts
from whimbrel.stream.prefetch.trace import Record

CHUNK = 64 << 10
LOCAL_S = 0.0001


class Chunks:
    """The part of the chunk map that orders look at, in memory."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.chunk_bytes = CHUNK
        self.table = bytearray(chunks)

    def is_local(self, first: int, last: int) -> bool:
        return self.table.find(0, first, last) < 0

    def missing_run(self, first: int, last: int, longest: int | None = None) -> Run | None:
        start = self.table.find(0, first, last)
        if start < 0:
            return None
        reach = last if longest is None else min(last, start + longest)
        end = self.table.find(1, start, reach)
        return start, reach if end < 0 else end

    @property
    def missing(self) -> int:
        return self.table.count(0)


class Sweep:
    """The cold sweep over ``Chunks``, behind a policy."""

    def __init__(self, chunks: Chunks, policy: Order | None) -> None:
        self.chunks, self.policy, self.cursor = chunks, policy, 0

    def next_run(self, longest: int) -> Run | None:
        while self.policy is not None and (run := self.policy.next_run(longest)) is not None:
            if not self.chunks.is_local(*run):
                return run
        run = self.chunks.missing_run(self.cursor, self.chunks.chunks, longest)
        self.cursor = run[1] if run else 0
        return run


@dataclass
class Outcome:
    reads: int = 0
    misses: int = 0
    miss_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.reads if self.reads else 1.0


class Simulation:
    def __init__(
        self,
        chunks: Chunks,
        policy: Order | None,
        *,
        background: bool = True,
        rate: float = 50e6,
        delay_s: float = 0.001,
        window_chunks: int = 4,
    ) -> None:
        self.chunks, self.policy, self.background = chunks, policy, background
        self.order = Sweep(chunks, policy)
        self.rate, self.delay_s, self.window_chunks = rate, delay_s, window_chunks
        self.now = self.free_at = 0.0
        self.flying: dict[int, float] = {}
        self.landing: list[tuple[float, int, bool]] = []
        self.in_window = 0
        self.demand_open = 0
        self.demand_ended = self.sent_at = -1.0

    def _ask(self, chunk: int, *, demand: bool) -> None:
        self.free_at = max(self.free_at, self.now) + CHUNK / self.rate
        at = self.free_at + self.delay_s
        self.flying[chunk] = at
        heapq.heappush(self.landing, (at, chunk, demand))
        if demand:
            self.demand_open += 1
        else:
            self.in_window += 1

    def _send(self) -> float | None:
        """Fill the window; when to look again, None: after the next landing."""
        while self.background and self.in_window < self.window_chunks:
            busy = self.demand_open or self.now - self.demand_ended < LINGER_S
            if busy and self.now - self.sent_at <= LONGEST_HOLD_S:
                if self.policy is not None and self.in_window < URGENT_BYTES // CHUNK:
                    run = self.policy.next_urgent(1)
                    if run is not None and run[0] not in self.flying:
                        self._ask(run[0], demand=False)
                        self.sent_at = self.now
                        continue
                ready = self.demand_ended + LINGER_S if not self.demand_open else self.sent_at + LONGEST_HOLD_S
                return max(min(ready, self.sent_at + LONGEST_HOLD_S), self.now) + 1e-6
            run = self.order.next_run(1)
            if run is None:
                return None
            if run[0] in self.flying:
                if len(self.flying) >= self.chunks.missing:
                    return None
                continue
            self._ask(run[0], demand=False)
            self.sent_at = self.now
        return None

    def until(self, end: float) -> None:
        """Let time pass."""
        while True:
            again = self._send()
            next_landing = self.landing[0][0] if self.landing else None
            times = [each for each in (again, next_landing) if each is not None and each <= end]
            if not times:
                self.now = max(self.now, end)
                return
            self.now = max(min(times), self.now)
            while self.landing and self.landing[0][0] <= self.now:
                _, chunk, demand = heapq.heappop(self.landing)
                self.flying.pop(chunk, None)
                self.chunks.table[chunk] = 1
                if demand:
                    self.demand_open -= 1
                    self.demand_ended = self.now
                else:
                    self.in_window -= 1

    def play(self, records: Iterable[Record], *, speed: float = 1.0) -> Outcome:
        outcome = Outcome()
        for pause_s, burst in bursts(records):
            self.until(self.now + pause_s / speed)
            waits = [self._one(record, outcome) for record in burst]
            began = self.now
            for until in waits:
                if until > self.now:
                    self.until(until)
            self.until(max(self.now, began + LOCAL_S))
        outcome.elapsed_s = self.now
        return outcome

    def _one(self, record: Record, outcome: Outcome) -> float:
        first, last = record.offset // CHUNK, -(-(record.offset + record.length) // CHUNK)
        if self.policy is not None:
            self.policy.accessed(first, last, record.access)
        if record.access == "trim":
            return self.now
        ready = self.now
        for chunk in range(first, last):
            if self.chunks.table[chunk]:
                continue
            start = chunk * CHUNK
            if record.access == "write" and record.offset <= start and record.offset + record.length >= start + CHUNK:
                self.chunks.table[chunk] = 1
                continue
            if chunk not in self.flying:
                self._ask(chunk, demand=True)
            ready = max(ready, self.flying[chunk])
        if record.access == "read":
            outcome.reads += 1
            if ready > self.now:
                outcome.misses += 1
                outcome.miss_s.append(ready - self.now)
        return ready
