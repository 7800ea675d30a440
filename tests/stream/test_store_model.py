"""The store against a model, step by step: guest IO, fetches in every state, flushes, deaths of process and host."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.stream.lossy import LossyDisk
from whimbrel.stream.chunkmap import ChunkMap, DurableFile, open_map
from whimbrel.stream.mapfile import HEADER_BYTES, NO, YES
from whimbrel.stream.store import Claim, Store

CHUNK = 4096
CHUNKS = 7
SIZE = CHUNKS * CHUNK - 1536
SECTOR = 512


class CrashError(Exception):
    """The host is gone."""


class StoreMachine(RuleBasedStateMachine):
    """``model`` is what the guest must read; ``allowed`` per sector, what it may read after a crash of the host."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="wmodel"))
        self.source = bytes(self.rng.randbytes(SIZE - 2 * CHUNK) + bytes(2 * CHUNK))
        self.model = bytearray(self.source)
        self.allowed = [{self.sector(self.model, at)} for at in range(SIZE // SECTOR)]
        self.touched: set[int] = set()
        self.disk = LossyDisk(self.rng.randbytes(SIZE))
        self.durable: LossyDisk | None = None
        self.boot = 1
        self.claims: list[Claim] = []
        self.arrived: list[str] = []
        self.waiting = 0
        self.crashes = 0
        self.open()

    def open(self) -> None:
        def durable_file(path: Path) -> DurableFile:
            if self.durable is None:
                self.durable = LossyDisk(path.read_bytes())
            return self.durable

        self.map: ChunkMap = open_map(
            self.directory / "m",
            size_bytes=SIZE,
            source="s",
            target="t",
            chunk_bytes=CHUNK,
            boot_id=self.boot.to_bytes(16, "big"),
            durable_file=durable_file,
        )
        self.store = Store(self.disk, self.map)
        self.wanted: list[int] = []
        self.store.want = self.wanted.extend
        self.claims = []

    @staticmethod
    def sector(content: bytes | bytearray, at: int) -> bytes:
        return bytes(content[at * SECTOR : (at + 1) * SECTOR])

    def fetched(self, chunks: list[int]) -> None:
        """Bring chunks as the fetcher would, past claims that are open."""
        for chunk in chunks:
            for claim in [c for c in self.claims if c.first <= chunk < c.last]:
                self.claims.remove(claim)
                self.land(claim)
            claim_now = self.store.claim(chunk, chunk + 1)
            if claim_now is not None:
                self.land(claim_now)

    def land(self, claim: Claim) -> None:
        start, length = self.store.byte_range(claim)
        self.store.land(claim, memoryview(self.source[start : start + length]))

    ranges = st.tuples(st.integers(0, SIZE // SECTOR - 1), st.integers(1, 3 * CHUNK // SECTOR))

    def cut(self, where: tuple[int, int]) -> tuple[int, int]:
        offset = where[0] * SECTOR
        return offset, min(where[1] * SECTOR, SIZE - offset)

    def change(self, offset: int, content: bytes) -> None:
        self.model[offset : offset + len(content)] = content
        for at in range(offset // SECTOR, (offset + len(content)) // SECTOR):
            self.allowed[at].add(self.sector(self.model, at))
        self.touched.update(range(offset // CHUNK, -(-(offset + len(content)) // CHUNK)))

    @rule(where=ranges)
    def write(self, where: tuple[int, int]) -> None:
        offset, length = self.cut(where)
        data = self.rng.randbytes(length)
        needs = self.store.needs(offset, length)
        assert len(needs) <= 2
        self.fetched(needs)
        self.store.write(offset, memoryview(data))
        self.change(offset, data)

    @rule(where=ranges)
    def zero(self, where: tuple[int, int]) -> None:
        offset, length = self.cut(where)
        self.fetched(self.store.needs(offset, length))
        self.store.zero(offset, length)
        self.change(offset, bytes(length))

    @rule(where=ranges)
    def trim(self, where: tuple[int, int]) -> None:
        offset, length = self.cut(where)
        kept = self.store.needs(offset, length)
        self.store.trim(offset, length)
        for at in range(offset // SECTOR, (offset + length) // SECTOR):
            if at * SECTOR // CHUNK not in kept:
                self.change(at * SECTOR, bytes(SECTOR))

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        offset, length = self.cut(where)
        self.fetched(self.store.missing(offset, length))
        buffer = memoryview(bytearray(length))
        self.store.read(offset, buffer)
        assert bytes(buffer) == self.model[offset : offset + length]

    @rule(first=st.integers(0, CHUNKS - 1), count=st.integers(1, CHUNKS))
    def fetch_begins(self, first: int, count: int) -> None:
        claim = self.store.claim(first, min(first + count, CHUNKS))
        if claim is not None:
            self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 100), fails=st.booleans())
    def fetch_ends(self, which: int, fails: bool) -> None:
        claim = self.claims.pop(which % len(self.claims))
        if fails:
            self.store.abandon(claim)
        else:
            self.land(claim)

    @rule(first=st.integers(0, CHUNKS - 1))
    def hole_found(self, first: int) -> None:
        start = first * CHUNK
        end = min(start + CHUNK, SIZE)
        if not any(self.source[start:end]) and (claim := self.store.claim(first, first + 1)) is not None:
            self.store.land(claim, None)

    @rule(where=ranges)
    def somebody_waits(self, where: tuple[int, int]) -> None:
        missing = self.store.missing(*self.cut(where))
        told: list[object] = []
        self.store.when_local(missing, told.append)
        if not missing:
            assert told == [None]
            return
        assert not told
        self.fetched(missing)
        assert told == [None]
        assert not self.store.waiting_chunks

    @rule()
    def flush(self) -> None:
        self.store.flush()
        for at in range(len(self.allowed)):
            self.allowed[at] = {self.sector(self.model, at)}

    @rule(where=ranges)
    def flush_while_somebody_writes(self, where: tuple[int, int]) -> None:
        """A write in the middle of a flush, which may but need not cover it."""
        offset, length = self.cut(where)
        data = self.rng.randbytes(length)
        self.fetched(self.store.needs(offset, length))
        before = [self.sector(self.model, at) for at in range(len(self.allowed))]

        def write() -> None:
            self.disk.after_flush = lambda: None
            self.store.write(offset, memoryview(data))

        self.disk.after_flush = write
        self.store.flush()
        for at, content in enumerate(before):
            self.allowed[at] = {content}
        self.change(offset, data)

    @rule(seed=st.integers(0, 2**32), moment=st.integers(0, 3))
    def host_crashes_in_a_flush(self, seed: int, moment: int) -> None:
        """Before or after either of its two syncs: nothing was acknowledged, and nothing may be torn."""
        assert self.durable is not None

        def crash() -> None:
            raise CrashError

        victim = self.disk if moment < 2 else self.durable
        if moment % 2:
            victim.after_flush = crash
        else:
            victim.before_flush = crash
        with contextlib.suppress(CrashError):
            self.store.flush()
        victim.before_flush = victim.after_flush = lambda: None
        self.host_crashes(seed)

    def close_roughly(self) -> None:
        """Free the lock as a death does; files and mapping stay as they are."""
        assert self.durable is not None
        with contextlib.suppress(OSError):
            self.map.close()

    @rule()
    def process_dies(self) -> None:
        assert self.durable is not None
        self.close_roughly()
        # The page cache lives on: disk and durable map keep what is not synced yet.
        (self.directory / "m.durable").write_bytes(self.durable.now)
        self.open()

    @rule(seed=st.integers(0, 2**32))
    def host_crashes_at_rest(self, seed: int) -> None:
        self.host_crashes(seed)

    def host_crashes(self, seed: int) -> None:
        assert self.durable is not None
        rng = random.Random(seed)
        self.close_roughly()
        (self.directory / "m.durable").write_bytes(self.durable.crash(rng))
        self.durable = None
        live = bytearray((self.directory / "m.live").read_bytes())
        for at in range(HEADER_BYTES, len(live)):
            if rng.random() < 0.5:
                live[at] = rng.choice((NO, YES))
        (self.directory / "m.live").write_bytes(live)
        self.disk = LossyDisk(self.disk.crash(rng))
        self.boot += 1
        self.open()
        # From here on the guest has what a disk may have after a crash: per sector one of the allowed contents.
        for chunk in range(CHUNKS):
            start = chunk * CHUNK
            end = min(start + CHUNK, SIZE)
            truth = self.disk.now if self.map.is_local(chunk, chunk + 1) else self.source
            for at in range(start // SECTOR, end // SECTOR):
                found = self.sector(truth, at)
                assert found in self.allowed[at], f"sector {at} of chunk {chunk} holds what it never may"
                self.allowed[at] = {found}
            self.model[start:end] = truth[start:end]

    @invariant()
    def local_chunks_have_their_data(self) -> None:
        for chunk in range(CHUNKS):
            start = chunk * CHUNK
            end = min(start + CHUNK, SIZE)
            if self.map.is_local(chunk, chunk + 1):
                assert self.disk.now[start:end] == self.model[start:end]
            else:
                assert self.model[start:end] == self.source[start:end]
            if not self.map.written(chunk):
                assert self.model[start:end] == self.source[start:end]

    @invariant()
    def the_map_counts(self) -> None:
        assert self.map.missing_chunks == sum(not self.map.is_local(c, c + 1) for c in range(CHUNKS))

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.close_roughly()
            shutil.rmtree(self.directory)


class LongStoreMachine(StoreMachine):
    """The same, for longer."""


StoreMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
LongStoreMachine.TestCase.settings = settings(StoreMachine.TestCase.settings, max_examples=1500)
TestStoreModel = StoreMachine.TestCase
TestStoreModelLong = pytest.mark.timeout(1800)(pytest.mark.slow(LongStoreMachine.TestCase))
