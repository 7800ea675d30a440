"""Many threads on few chunks: guest IO, a fetcher with a source that comes and goes, and every byte accounted for."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.dataplane.memorydevice import MemoryDevice, MemoryDisk
from whimbrel.errors import Unavailable
from whimbrel.ports.block import BlockDevice
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.hydration import Sweeping
from whimbrel.stream.mapfile import HEADER_BYTES, NO, YES
from whimbrel.stream.source import Source
from whimbrel.stream.store import Store

CHUNK = 64 << 10
CHUNKS = 12
SIZE = CHUNKS * CHUNK - 4096
LANES_OF_CHUNK = 4
"""Each chunk is divided among so many threads; a thread alone knows what its part holds."""
PART = CHUNK // LANES_OF_CHUNK


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk(SIZE, tracked=False)
    disk.write(0, random.Random(5).randbytes(SIZE))
    return disk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "t.raw"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(SIZE)
    device = FileDevice(path, writable=True)
    chunkmap = open_map(tmp_path / "m", size_bytes=SIZE, source="s", target="t")
    yield Store(device, chunkmap)
    chunkmap.close()
    device.close()


class Part(threading.Thread):
    """Owns one part of every chunk, changes it and reads it back at once: a fetch must never undo a write."""

    def __init__(self, number: int, store: Store, content: bytearray) -> None:
        super().__init__(daemon=True)
        self.number, self.store, self.content = number, store, content
        self.rng = random.Random(number)
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for step in range(150):
                self.step(step)
        except BaseException as failure:
            self.failure = failure

    def step(self, step: int) -> None:
        offset = self.rng.randrange(CHUNKS) * CHUNK + self.number * PART
        length = min(PART, SIZE - offset)
        what = self.rng.random()
        if what < 0.4:
            data = struct.pack("<II", self.number, step) * (length // 8)
            self.local(self.store.needs(offset, length))
            self.store.write(offset, memoryview(data))
            self.content[offset : offset + length] = data
        elif what < 0.5:
            self.local(self.store.needs(offset, length))
            self.store.zero(offset, length)
            self.content[offset : offset + length] = bytes(length)
        elif what < 0.55:
            self.store.flush()
        elif what < 0.65:
            self.trim(offset, length)
        self.local(self.store.missing(offset, length))
        buffer = memoryview(bytearray(length))
        self.store.read(offset, buffer)
        assert bytes(buffer) == self.content[offset : offset + length], f"part {self.number} at {offset}"

    def trim(self, offset: int, length: int) -> None:
        """A part of a chunk: zeros where the chunk is local, and left alone where it is missing."""
        self.store.trim(offset, length)
        self.local(self.store.missing(offset, length))
        found = bytearray(length)
        self.store.read(offset, memoryview(found))
        assert found in (self.content[offset : offset + length], bytes(length))
        self.content[offset : offset + length] = found

    def local(self, chunks: list[int]) -> None:
        come = threading.Event()
        self.store.when_local(chunks, lambda error: come.set())
        assert come.wait(90), f"chunks {chunks} never came"


class Whole(threading.Thread):
    """Changes whole chunks of its own, which the background fetches at the same time."""

    def __init__(self, store: Store, content: bytearray, chunks: list[int]) -> None:
        super().__init__(daemon=True)
        self.store, self.content, self.chunks = store, content, chunks
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for chunk in self.chunks:
                kind = ("write", "zero", "trim")[chunk % 3]
                data = bytes([chunk + 1 if kind == "write" else 0]) * CHUNK
                assert not self.store.needs(chunk * CHUNK, CHUNK)
                if kind == "write":
                    self.store.write(chunk * CHUNK, memoryview(data))
                elif kind == "zero":
                    self.store.zero(chunk * CHUNK, CHUNK)
                else:
                    self.store.trim(chunk * CHUNK, CHUNK)
                self.content[chunk * CHUNK : (chunk + 1) * CHUNK] = data
                buffer = memoryview(bytearray(CHUNK))
                self.store.read(chunk * CHUNK, buffer)
                assert buffer == data
        except BaseException as failure:
            self.failure = failure


def finished(threads: list[Part] | list[Whole]) -> None:
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
        assert thread.failure is None, repr(thread.failure)


@pytest.mark.parametrize("background", [True, False])
def test_parts_of_shared_chunks(store: Store, disk: MemoryDisk, background: bool) -> None:
    content = bytearray(disk.read(0, SIZE))
    away = iter([False, True, True, False])

    def opener() -> BlockDevice:
        if next(away, False):
            raise Unavailable("the source is away")
        return MemoryDevice(disk, writable=False)

    for nth in (3, 5, 9, 14):
        disk.fail_at(nth, Unavailable("a read failed"), ["read"])
    fetcher = Fetcher(store, Source(opener, SIZE), Sweeping(store.map), background=background)
    parts = [Part(number, store, content) for number in range(LANES_OF_CHUNK)]
    fetcher.start()
    for part in parts:
        part.start()
    finished(parts)
    fetcher.stop()
    view = memoryview(bytearray(SIZE))
    for chunk in range(CHUNKS):
        start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, SIZE)
        if store.map.is_local(chunk, chunk + 1):
            store.read(start, view[start:end])
        else:
            disk.read_to(start, view[start:end])
    assert view == content


@pytest.mark.parametrize("seed", range(3))
def test_a_background_that_is_turned_all_the_time(store: Store, disk: MemoryDisk, seed: int) -> None:
    """Bandwidth, window and pause change at any moment: nobody gets wrong bytes, and nobody waits for ever."""
    content, rng = bytearray(disk.read(0, SIZE)), random.Random(seed)
    fetcher = Fetcher(store, Source(lambda: MemoryDevice(disk, writable=False), SIZE), Sweeping(store.map))
    parts = [Part(number + 10 * seed, store, content) for number in range(LANES_OF_CHUNK)]
    for number, part in enumerate(parts):
        part.number = number
    fetcher.start()
    for part in parts:
        part.start()
    while any(part.is_alive() for part in parts):
        rng.choice(
            (
                lambda: fetcher.set_bandwidth(rng.choice((None, 1e5, 1e6, 1e8))),
                lambda: fetcher.window.fix(rng.choice((None, CHUNK, 4 * CHUNK))),
                lambda: fetcher.pause(rng.random() < 0.5),
            )
        )()
        time.sleep(rng.uniform(0, 0.005))
    finished(parts)
    fetcher.pause(False)
    fetcher.set_bandwidth(None)
    deadline = time.monotonic() + 90
    while store.map.missing_chunks:
        assert time.monotonic() < deadline, "the background does not go on"
        time.sleep(0.01)
    fetcher.stop()
    view = memoryview(bytearray(SIZE))
    store.read(0, view)
    assert view == content


@pytest.mark.parametrize("seed", range(10))
def test_whole_changes_against_a_hydration(store: Store, disk: MemoryDisk, seed: int) -> None:
    content = bytearray(disk.read(0, SIZE))
    fetcher = Fetcher(store, Source(lambda: MemoryDevice(disk, writable=False), SIZE), Sweeping(store.map))
    mine = random.Random(seed).sample(range(CHUNKS - 1), 6)
    writers = [Whole(store, content, mine[:3]), Whole(store, content, mine[3:])]
    fetcher.start()
    for writer in writers:
        writer.start()
    finished(writers)
    deadline = time.monotonic() + 90
    while store.map.missing_chunks and time.monotonic() < deadline:
        time.sleep(0.01)
    fetcher.stop()
    view = memoryview(bytearray(SIZE))
    store.read(0, view)
    assert view == content
    assert [chunk for chunk in range(CHUNKS) if store.map.written(chunk)] == sorted(mine)


def test_a_whole_write_does_not_wait_for_the_source(store: Store) -> None:
    claim = store.claim(0, 2)
    assert claim is not None
    store.write(0, memoryview(b"\1" * CHUNK))
    assert store.land(claim, memoryview(b"\2" * (2 * CHUNK))) == CHUNK
    view = memoryview(bytearray(2 * CHUNK))
    store.read(0, view)
    assert view == b"\1" * CHUNK + b"\2" * CHUNK


@pytest.mark.parametrize("kind", ["write", "zero", "trim"])
def test_a_whole_change_waits_for_data_that_is_landing(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    landing, go_on = threading.Event(), threading.Event()
    write = store.target.write_from

    def write_from(offset: int, data: memoryview) -> None:
        if data[0] == 2:
            landing.set()
            assert go_on.wait(90)
        write(offset, data)

    monkeypatch.setattr(store.target, "write_from", write_from)
    claim = store.claim(0, 1)
    assert claim is not None
    fetch = threading.Thread(target=store.land, args=(claim, memoryview(b"\2" * CHUNK)))
    changes = {
        "write": partial(store.write, 0, memoryview(b"\1" * CHUNK)),
        "zero": partial(store.zero, 0, CHUNK),
        "trim": partial(store.trim, 0, CHUNK),
    }
    guest = threading.Thread(target=changes[kind])
    fetch.start()
    assert landing.wait(90)
    guest.start()
    guest.join(0.1)
    assert guest.is_alive()
    go_on.set()
    for thread in (fetch, guest):
        thread.join(90)
    view = memoryview(bytearray(CHUNK))
    store.read(0, view)
    assert bytes(view) == (b"\1" if kind == "write" else b"\0") * CHUNK


def test_a_write_in_the_middle_of_a_sync_is_left_for_the_next(store: Store, tmp_path: Path) -> None:
    """Its mark must not become durable by a sync that began before its data was there."""
    flush = store.target.flush
    late = memoryview(b"l" * CHUNK)

    def flush_with_a_late_write() -> None:
        flush()
        store.write(2 * CHUNK, late)

    store.write(CHUNK, late)
    store.target.flush = flush_with_a_late_write  # type: ignore[method-assign]
    store.flush()
    table = (tmp_path / "m.durable").read_bytes()[HEADER_BYTES : HEADER_BYTES + 4]
    assert table == bytes([NO, YES, NO, NO])
    store.target.flush = flush  # type: ignore[method-assign]
    store.flush()
    table = (tmp_path / "m.durable").read_bytes()[HEADER_BYTES : HEADER_BYTES + 4]
    assert table == bytes([NO, YES, YES, NO])


def test_who_waits_for_a_chunk_that_a_failing_write_took_gets_it_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    store.want = wanted.extend
    told: list[object] = []
    claim = store.claim(3, 4)
    assert claim is not None
    store.when_local([3], told.append)
    assert not wanted  # a fetch is on its way

    with monkeypatch.context() as broken:
        broken.setattr(store.target, "write_from", _refuse)
        with pytest.raises(Unavailable, match="no write"):
            store.write(3 * CHUNK, memoryview(bytes(CHUNK)))
    assert wanted == [3]
    assert store.land(claim, memoryview(bytes(CHUNK))) == 0
    again = store.claim(3, 4)
    assert again is not None
    assert not told
    store.land(again, memoryview(bytes(CHUNK)))
    assert told == [None]


def _refuse(_offset: int, _data: memoryview) -> None:
    raise Unavailable("no write today")


def test_failed_sync_fails_every_later_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(0, memoryview(b"x" * CHUNK))
    fails = [True]

    def flush() -> None:
        if fails.pop() if fails else False:
            raise Unavailable("EIO")

    monkeypatch.setattr(store.target, "flush", flush)
    with pytest.raises(Unavailable, match="EIO"):
        store.flush()
    with pytest.raises(Unavailable, match="could not be synced"):
        store.flush()
