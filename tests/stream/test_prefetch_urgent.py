"""What the order calls urgent is sent while a demand is open, a little at a time; a run with a gap loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stream.streams import PATIENCE_S, until
from tests.stream.test_fetcher import CHUNK, SIZE, Hand
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.stream.chunkmap import Run, open_map
from whimbrel.stream.fetcher import URGENT_BYTES, Fetcher
from whimbrel.stream.hydration import Access, Sweeping
from whimbrel.stream.source import Source
from whimbrel.stream.store import Store
from whimbrel.stream.window import Window


class Sure:
    """Is sure of these chunks; proposes these runs otherwise."""

    def __init__(self, urgent: list[int], runs: list[Run]) -> None:
        self.urgent, self.runs = urgent, runs

    def next_run(self, longest: int) -> Run | None:
        return self.runs.pop(0) if self.runs else None

    def next_urgent(self, longest: int) -> Run | None:
        return (at := self.urgent.pop(0), at + 1) if self.urgent else None

    def accessed(self, first: int, last: int, access: Access) -> None:
        pass


Build = Callable[[Hand, Sure, int], tuple[Fetcher, Store]]


@pytest.fixture
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Build:
    def make(hand: Hand, sure: Sure, window: int) -> tuple[Fetcher, Store]:
        path = tmp_path / "t.raw"
        with path.open("wb") as file:
            file.truncate(SIZE)
        device = FileDevice(path, writable=True)
        chunkmap = open_map(tmp_path / "m", size_bytes=SIZE, source="s", target="t")
        store = Store(device, chunkmap)
        order = Sweeping(chunkmap, sure)
        fetcher = Fetcher(store, Source(lambda: hand, SIZE), order, window=Window(window), background=False)
        request.addfinalizer(device.close)
        request.addfinalizer(chunkmap.close)
        request.addfinalizer(fetcher.stop)
        return fetcher, store

    return make


def test_urgent_chunks_go_beside_a_demand_within_their_bound(build: Build) -> None:
    hand = Hand()
    fetcher, store = build(hand, Sure([20, 30, 40, 41], []), 16 * CHUNK)
    fetcher.start()
    until(lambda: fetcher.holes_known, "the holes")
    store.when_local([60], lambda _error: None)
    until(lambda: hand.in_flight == [(60 * CHUNK, CHUNK)], "the demand")
    fetcher._background_sent = time.monotonic() + PATIENCE_S  # no pity request in this test
    fetcher.pause(False)
    until(lambda: len(hand.in_flight) == 3, "the urgent ones")
    time.sleep(0.05)
    assert hand.in_flight[1:] == [(20 * CHUNK, CHUNK), (30 * CHUNK, CHUNK)]
    assert URGENT_BYTES == 2 * CHUNK


def test_what_lies_behind_a_chunk_in_flight_is_fetched_next(build: Build) -> None:
    hand = Hand()
    fetcher, store = build(hand, Sure([], [(10, 14)]), CHUNK)
    taken = store.claim(12, 13)
    assert taken is not None
    fetcher.start()
    until(lambda: fetcher.holes_known, "the holes")
    fetcher.pause(False)
    until(lambda: hand.in_flight, "the first part")
    hand.let_go()
    until(lambda: len(hand.asked) == 2, "the second part")
    assert hand.asked == [(10 * CHUNK, 2 * CHUNK), (13 * CHUNK, CHUNK)]
    store.abandon(taken)
