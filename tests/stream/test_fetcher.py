"""The fetcher over a source that the test holds in its hand: demand first, a bounded window, holes, a full target."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stream.streams import PATIENCE_S, until
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.dataplane.memorydevice import MemoryDevice, MemoryDisk
from whimbrel.errors import QuotaExceeded, Unavailable
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockLane, Completion
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.hydration import Sweeping
from whimbrel.stream.source import Source
from whimbrel.stream.store import Store
from whimbrel.stream.window import Window

CHUNK = 64 << 10
CHUNKS = 64
SIZE = CHUNKS * CHUNK


class Hand:
    """A device whose reads end only when the test lets them; it knows what is in flight, and what was asked."""

    size_bytes = SIZE
    read_only = True
    block_bytes = 1

    def __init__(self, zero_from: int = SIZE) -> None:
        self.changed_now = threading.Condition()
        self.open_reads: deque[tuple[int, int]] = deque()
        self.asked: list[tuple[int, int]] = []
        self.free = False
        self.closed = False
        self._zero_from = zero_from

    def lane(self) -> BlockLane:
        return HandLane(self)

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        assert length is None
        if start < self._zero_from:
            yield Extent(start, self._zero_from - start)
        if self._zero_from < SIZE:
            yield Extent(self._zero_from, SIZE - self._zero_from, zero=True)

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        raise NotImplementedError

    def close(self) -> None:
        with self.changed_now:
            self.closed = True
            self.changed_now.notify_all()

    def let_go(self, count: int = 1) -> None:
        with self.changed_now:
            for _ in range(count):
                self.open_reads.popleft()
            self.changed_now.notify_all()

    @property
    def in_flight(self) -> list[tuple[int, int]]:
        with self.changed_now:
            return list(self.open_reads)


class HandLane:
    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self.mine: list[tuple[int, int, int]] = []
        self.cookie = 0

    @property
    def in_flight(self) -> int:
        return len(self.mine)

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        with self.hand.changed_now:
            self.cookie += 1
            buffer[:] = b"".join(
                bytes([at + 1]) * CHUNK for at in range(offset // CHUNK, (offset + len(buffer)) // CHUNK)
            )
            self.mine.append((self.cookie, offset, len(buffer)))
            self.hand.asked.append((offset, len(buffer)))
            if not self.hand.free:
                self.hand.open_reads.append((offset, len(buffer)))
            return self.cookie

    def reap(self) -> Completion:
        with self.hand.changed_now:
            while True:
                if self.hand.closed:
                    raise Unavailable("closed")
                for each in self.mine:
                    if each[1:] not in self.hand.open_reads:
                        self.mine.remove(each)
                        return Completion(each[0], "read", each[1], each[2])
                self.hand.changed_now.wait()

    def submit_write(self, offset: int, data: memoryview) -> int:
        raise NotImplementedError

    def submit_zero(self, offset: int, length: int, *, may_punch: bool = True) -> int:
        raise NotImplementedError

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "t.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    device = FileDevice(path, writable=True)
    chunkmap = open_map(tmp_path / "m", size_bytes=SIZE, source="s", target="t")
    yield Store(device, chunkmap)
    chunkmap.close()
    device.close()


def fetcher_of(store: Store, hand: Hand, *, window: int | None = None, background: bool = True) -> Fetcher:
    fetcher = Fetcher(
        store, Source(lambda: hand, SIZE), Sweeping(store.map), window=Window(window), background=background
    )
    fetcher.start()
    return fetcher


def test_a_miss_goes_ahead_and_the_background_holds_back(store: Store) -> None:
    hand = Hand()
    fetcher = fetcher_of(store, hand, window=2 * CHUNK)
    until(lambda: len(hand.in_flight) == 2, "a full window")
    assert sum(length for _, length in hand.in_flight) == 2 * CHUNK
    time.sleep(0.02)
    assert len(hand.in_flight) == 2
    come = threading.Event()
    store.when_local([50, 51, 52], lambda _error: come.set())
    until(lambda: len(hand.in_flight) == 3, "the demand")
    assert hand.in_flight[2] == (50 * CHUNK, 3 * CHUNK)  # neighbours in one request, sent at once
    fetcher._background_sent = time.monotonic() + PATIENCE_S  # no pity request in this test
    hand.let_go(2)
    until(lambda: store.map.is_local(0, 2), "the background's chunks")
    time.sleep(0.05)
    assert hand.in_flight == [(50 * CHUNK, 3 * CHUNK)]
    hand.let_go()
    assert come.wait(PATIENCE_S)
    until(lambda: len(hand.in_flight) == 2, "the background again")
    assert fetcher.statistics.demand_bytes == 3 * CHUNK
    fetcher.stop()


def test_a_guest_that_misses_without_end_does_not_stop_the_hydration(store: Store) -> None:
    hand = Hand()
    fetcher = fetcher_of(store, hand, window=CHUNK, background=False)
    store.when_local([60], lambda _error: None)
    until(lambda: hand.in_flight == [(60 * CHUNK, CHUNK)], "the demand")
    fetcher.pause(False)
    until(lambda: len(hand.in_flight) == 2, "one request of the background")
    assert hand.in_flight[1] == (0, CHUNK)
    fetcher.stop()


def test_who_wants_a_chunk_in_flight_waits_for_it(store: Store) -> None:
    hand = Hand()
    fetcher = fetcher_of(store, hand, window=CHUNK)
    until(lambda: hand.in_flight == [(0, CHUNK)], "the background")
    fetcher.pause(True)
    told: list[object] = []
    store.when_local([0], told.append)
    store.when_local([0], told.append)
    time.sleep(0.05)
    assert hand.asked == [(0, CHUNK)]
    hand.let_go()
    until(lambda: told == [None, None], "both")
    assert hand.asked == [(0, CHUNK)]
    fetcher.stop()


def test_scattered_demand_becomes_the_runs_that_are_missing(store: Store) -> None:
    hand = Hand()
    hand.free = True
    for chunk in (3, 4, 7):
        store.write(chunk * CHUNK, memoryview(bytes(CHUNK)))
    fetcher = fetcher_of(store, hand, background=False)
    come = threading.Event()
    store.when_local(range(10), lambda _error: come.set())
    assert come.wait(PATIENCE_S)
    chunks = sorted(at for offset, length in hand.asked for at in range(offset // CHUNK, (offset + length) // CHUNK))
    assert chunks == [0, 1, 2, 5, 6, 8, 9]
    fetcher.stop()


def test_holes_are_local_without_a_fetch_and_junk_under_them_is_gone(store: Store) -> None:
    hand = Hand(zero_from=10 * CHUNK + 100)
    hand.free = True
    store.target.write_from(20 * CHUNK, memoryview(b"junk of before the crash"))
    fetcher = fetcher_of(store, hand, background=False)
    until(lambda: fetcher.holes_known, "the holes")
    assert store.map.missing_run(0, CHUNKS) == (0, 11)
    assert store.map.missing_chunks == 11
    assert fetcher.statistics.hole_bytes == 53 * CHUNK
    view = memoryview(bytearray(100))
    store.read(20 * CHUNK, view)
    assert bytes(view) == bytes(100)
    assert not hand.asked
    assert store.map.written_chunks == 0
    fetcher.stop()


def test_a_bandwidth_holds_and_can_be_lifted(store: Store) -> None:
    hand = Hand()
    hand.free = True
    fetcher = fetcher_of(store, hand, background=False)
    fetcher.set_bandwidth(8 * CHUNK)
    fetcher.pause(False)
    began = time.monotonic()
    until(lambda: store.map.missing_chunks <= CHUNKS - 10, "ten chunks")
    took = time.monotonic() - began
    fetched = CHUNKS - store.map.missing_chunks
    assert fetched <= 8 * (took + 0.5) + 8  # a request may be 4 chunks; a loaded machine only makes it slower
    fetcher.set_bandwidth(None)
    until(lambda: not store.map.missing_chunks, "the rest")
    with pytest.raises(ValueError, match="positive"):
        fetcher.set_bandwidth(0)
    fetcher.stop()


def test_a_full_target_is_waited_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.stream.fetcher.TARGET_PAUSE_S", 0.01)
    hand = Hand()
    hand.free = True
    write, full = store.target.write_from, threading.Event()
    full.set()

    def write_from(offset: int, data: memoryview) -> None:
        if full.is_set():
            raise QuotaExceeded("no space is left")
        write(offset, data)

    monkeypatch.setattr(store.target, "write_from", write_from)
    fetcher = fetcher_of(store, hand)
    come = threading.Event()
    store.when_local([33], lambda _error: come.set())
    until(lambda: fetcher.target_error, "the error in the status")
    assert not come.wait(0.1)
    assert store.map.missing_chunks == CHUNKS
    full.clear()
    assert come.wait(PATIENCE_S)
    until(lambda: not store.map.missing_chunks, "everything")
    view = memoryview(bytearray(SIZE))
    store.read(0, view)
    assert bytes(view) == b"".join(bytes([chunk + 1]) * CHUNK for chunk in range(CHUNKS))
    until(lambda: fetcher.target_error is None, "no error any more")
    fetcher.stop()


def test_an_error_of_the_target_is_over_when_all_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever failed may tell so only after somebody else has brought its chunk, which was the last."""
    monkeypatch.setattr("whimbrel.stream.fetcher.TARGET_PAUSE_S", 0.01)
    fetcher = Fetcher(store, Source(Hand, SIZE), Sweeping(store.map))
    for chunk in range(1, CHUNKS):
        store.write(chunk * CHUNK, memoryview(bytes(CHUNK)))
    claim = store.claim(0, 1)
    assert claim is not None

    def land(_claim: object, _data: object) -> int:
        raise QuotaExceeded("no space is left")

    with monkeypatch.context() as full:
        full.setattr(store, "land", land)
        assert fetcher._land(claim, None) == 0
    assert isinstance(fetcher.target_error, QuotaExceeded)
    store.write(0, memoryview(bytes(CHUNK)))
    assert fetcher.target_error is None


def test_stop_ends_everybody_whatever_they_wait_for(store: Store) -> None:
    hand = Hand()
    fetcher = fetcher_of(store, hand, window=CHUNK)
    until(lambda: hand.in_flight, "the background")
    store.when_local([40], lambda _error: None)
    until(lambda: len(hand.in_flight) == 2, "the demand")
    ender = threading.Thread(target=fetcher.stop)
    ender.start()
    ender.join(PATIENCE_S)
    assert not ender.is_alive()
    assert store.claim(0, CHUNKS) is not None


def test_a_target_that_is_whole_already_asks_nothing(store: Store) -> None:
    for chunk in range(CHUNKS):
        store.write(chunk * CHUNK, memoryview(bytes(CHUNK)))
    disk = MemoryDisk(SIZE)
    fetcher = Fetcher(store, Source(lambda: MemoryDevice(disk, writable=False), SIZE), Sweeping(store.map))
    fetcher.start()
    time.sleep(0.05)
    fetcher.stop()
    assert fetcher.statistics.background_bytes == 0
