"""The small parts: window, latency, order, statistics, configuration, a source that fails."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import pytest

from tests.stream.streams import config_for
from whimbrel.dataplane.memorydevice import MemoryDevice, MemoryDisk
from whimbrel.errors import Conflict, InvalidPlan, Unavailable, WhimbrelError
from whimbrel.ports.block import BlockDevice
from whimbrel.stream.chunkmap import Run, open_map
from whimbrel.stream.config import read_config
from whimbrel.stream.hydration import Access, ColdSweep, Sweeping
from whimbrel.stream.latency import GROWTH, Latency
from whimbrel.stream.source import Source, Stopped
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.store import all_zero
from whimbrel.stream.window import SMALLEST_BYTES, Window


def link(window: Window, rate: float, delay_s: float, seconds: float, start: float = 0.0) -> list[float]:
    """Requests over a simulated link; how long the queue was before each, in the second half."""
    now, free_at, queues = start, start, []
    flying: deque[tuple[float, int, float]] = deque()
    in_flight = 0
    while now < start + seconds:
        size = window.request_bytes
        while not flying or in_flight + size <= window.size_bytes:
            if now > start + seconds / 2:
                queues.append(max(free_at - now, 0.0))
            free_at = max(free_at, now) + size / rate
            flying.append((free_at + delay_s, size, now))
            in_flight += size
        now, done, sent = flying.popleft()
        in_flight -= done
        window.done(done, now - sent, now)
    return queues


@pytest.mark.parametrize(("rate", "delay_s"), [(50e6, 0.0005), (50e6, 0.02), (120e6, 0.001), (12e6, 0.005)])
def test_the_window_finds_a_short_queue_and_a_full_link(rate: float, delay_s: float) -> None:
    window = Window()
    queues = sorted(link(window, rate, delay_s, 40.0))
    assert queues[len(queues) // 2] < 0.015
    assert window.rate_bytes_per_s > 0.75 * rate


def test_the_window_follows_a_link_that_slows_down() -> None:
    window = Window()
    link(window, 100e6, 0.001, 19.0)
    wide = window.size_bytes
    assert wide > 512 << 10
    queues = sorted(link(window, 10e6, 0.001, 39.0, start=19.0))
    assert window.size_bytes < wide
    assert queues[len(queues) // 2] < 0.02


def test_a_window_set_by_hand() -> None:
    window = Window(1000)
    assert window.fixed
    link(window, 50e6, 0.001, 1.0)
    assert window.size_bytes == 1000
    window.fix(None)
    assert window.size_bytes >= SMALLEST_BYTES
    with pytest.raises(ValueError):
        window.fix(0)


def test_latency_percentiles() -> None:
    latency = Latency()
    assert latency.quantile_s(0.5) is None
    assert latency.report() == {
        "count": 0,
        "p50_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "max_ms": None,
        "recent_p99_ms": None,
    }
    for step in range(1, 1001):
        latency.note(step / 1000)
    for share in (0.5, 0.95, 0.99):
        found = latency.quantile_s(share)
        assert found is not None
        assert share <= found <= share * GROWTH
    assert latency.quantile_s(1.0) == 1.0
    latency.note(1e9)
    latency.note(0.0)
    assert latency.count == 1002
    assert latency.report()["max_ms"] == 1e12


def test_statistics() -> None:
    statistics = Statistics()
    assert statistics.hit_rate is None
    statistics.add(hits=3, misses=1, read_bytes=10)
    assert statistics.hit_rate == 0.75
    assert statistics.report()["hit_rate"] == 0.75
    assert statistics.report()["read_bytes"] == 10


class Forgetful:
    """A policy that proposes two chunks, one of them twice, and remembers what it was told."""

    def __init__(self) -> None:
        self.proposals: list[Run] = [(5, 6), (5, 6), (2, 3)]
        self.told: list[tuple[int, int, Access]] = []

    def next_run(self, longest: int) -> Run | None:
        return self.proposals.pop(0) if self.proposals else None

    def next_urgent(self, longest: int) -> Run | None:
        return None

    def accessed(self, first: int, last: int, access: Access) -> None:
        self.told.append((first, last, access))


def test_a_policy_and_the_final_sweep(tmp_path: Path) -> None:
    chunkmap = open_map(tmp_path / "m", size_bytes=10 * 65536, source="s", target="t")
    policy = Forgetful()
    order = Sweeping(chunkmap, policy)
    seen: list[Run] = []
    while chunkmap.missing_chunks:
        run = order.next_run(3)
        if run is not None:
            seen.append(run)
            if run != (3, 5) or seen.count(run) > 1:  # the first time somebody else has it in flight, and fails
                chunkmap.mark_local(*run)
    assert seen == [(5, 6), (2, 3), (0, 2), (3, 5), (6, 9), (9, 10), (3, 5)]
    order.accessed(1, 2, "read")
    assert policy.told == [(1, 2, "read")]
    order.use(None)
    order.accessed(1, 2, "read")
    assert len(policy.told) == 1
    assert order.next_run(3) is None
    assert ColdSweep(chunkmap).next_run(1) is None
    chunkmap.close()


def test_zeros_are_known() -> None:
    for length in (1, 2, 512, 65535, 65536, 65537, 200000):
        data = bytearray(length)
        assert all_zero(memoryview(data))
        for at in (0, length // 2, length - 1):
            data[at] = 1
            assert not all_zero(memoryview(data))
            data[at] = 0


def test_a_configuration_that_is_not_good(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    config = config_for(tmp_path, 1 << 20)
    path.write_text(config.model_dump_json(), encoding="utf-8")
    assert read_config(path) == config
    for broken in ("", "{}", config.model_dump_json().replace('"unix_path"', '"port": 1, "unknown"')):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(InvalidPlan, match="not good"):
            read_config(path)
    path.write_text(config.model_dump_json().replace('"host":null', '"host":"::1"'), encoding="utf-8")
    with pytest.raises(InvalidPlan):
        read_config(path)
    with pytest.raises(InvalidPlan):
        read_config(tmp_path / "missing")


def test_a_source_of_another_size_is_waited_out() -> None:
    sizes = iter([1 << 20, 3 << 20, 2 << 20])
    source = Source(lambda: MemoryDevice(MemoryDisk(next(sizes)), writable=False), 2 << 20)
    lane, device = source.lane()
    assert device.size_bytes == 2 << 20
    assert isinstance(source.error, Conflict)
    source.worked()
    assert source.error is None
    assert source.away_s is None
    lane.close()
    source.stop()
    with pytest.raises(Stopped):
        source.lane()


def test_a_failure_counts_once_for_all_lanes_of_a_device() -> None:
    opened: list[BlockDevice] = []
    told: list[WhimbrelError] = []

    def opener() -> BlockDevice:
        opened.append(MemoryDevice(MemoryDisk(65536), writable=False))
        return opened[-1]

    source = Source(opener, 65536, fail_after_s=0.0, lost=told.append)
    lanes = [source.lane() for _ in range(3)]
    assert len(opened) == 1
    for _, device in lanes:
        source.failed(device, Unavailable("gone"))
    assert len(told) == 1
    source.lane()
    assert len(opened) == 2
    waiting = threading.Thread(target=_until_stopped, args=(source,))
    source.failed(opened[-1], Unavailable("again"))
    waiting.start()
    source.stop()
    waiting.join(30)
    assert not waiting.is_alive()


def _until_stopped(source: Source) -> None:
    try:
        while True:
            _, device = source.lane()
            source.failed(device, Unavailable("and again"))
    except Stopped:
        return
