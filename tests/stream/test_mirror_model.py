"""Mirror against a model: changes, deaths of the shadow, the server and the host, at any operation.

Whatever was acknowledged is in the shadow's stable bytes and, once settled, at the target, which is like the shadow
then.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.stream.lossy import LossyDisk
from tests.stream.shadows import ShadowServer
from tests.stream.streams import PATIENCE_S
from whimbrel.errors import WhimbrelError
from whimbrel.stream.chunkmap import ChunkMap, DurableFile, open_map
from whimbrel.stream.protect.change import Change
from whimbrel.stream.protect.intent import Intent, open_intent
from whimbrel.stream.protect.journaled import Journaled
from whimbrel.stream.protect.mirror import Mirror
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped
from whimbrel.stream.store import Store

CHUNK = 4096
CHUNKS = 7
SIZE = CHUNKS * CHUNK - 2048
SECTOR = 512
SECTORS = SIZE // SECTOR
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""What a crash takes is made up here, so real syncs would only cost time."""
WHERE = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 3 * CHUNK // SECTOR))
CHANGES = st.lists(st.tuples(st.sampled_from(["write", "write", "zero", "trim"]), WHERE), min_size=1, max_size=6)
FAULT = st.sampled_from(["none", "shadow dies", "server dies", "host crashes", "both die"])


class LossyMap(mmap.mmap):
    """Remembers what was synced."""

    stable: bytes

    def flush(self, *where: int) -> None:
        start, length = where or (0, len(self))
        assert not start % mmap.PAGESIZE
        self.stable = self.stable[:start] + self[start : start + length] + self.stable[start + length :]


def lossy_map(path: Path, length: int) -> LossyMap:
    with path.open("r+b") as file:
        found = LossyMap(file.fileno(), length)
    found.stable = bytes(found[:])
    return found


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """No pauses, and marks that go at the first sync."""
    with (
        mock.patch("whimbrel.stream.protect.shadow.FIRST_PAUSE_S", 0.001),
        mock.patch("whimbrel.stream.protect.shadow.SETTLE_S", 0.001),
        mock.patch("whimbrel.stream.protect.intent.LINGER_S", -1.0),
    ):
        yield


class MirrorMachine(RuleBasedStateMachine):
    """``allowed`` per sector: what may be there, at either side."""

    @initialize(seed=st.integers(0, 2**32), block=st.sampled_from([1, 512, 1024]))
    def begin(self, seed: int, block: int) -> None:
        self.patches = hurried()
        self.patches.__enter__()
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="wmirror", dir=MEMORY))
        self.source = self.rng.randbytes(SIZE - 2 * CHUNK) + bytes(2 * CHUNK)
        self.shadow = ShadowServer(self.source, block_bytes=block)
        self.disk = LossyDisk(self.rng.randbytes(SIZE))
        self.durable: LossyDisk | None = None
        self.boot = 1
        self.allowed = [{self.sector(self.source, at)} for at in range(SECTORS)]
        self.open()

    @staticmethod
    def sector(content: bytes | bytearray, at: int) -> bytes:
        return bytes(content[at * SECTOR : (at + 1) * SECTOR])

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
        self.intent: Intent = open_intent(
            self.directory / "m.intent",
            self.map.header,
            untouched=not self.map.written_chunks,
            mapped=lossy_map,
        )
        self.dead = threading.Event()
        self.mirror = self.protected()
        self.mirror.start()

    def protected(self) -> Mirror | Journaled:
        return Mirror(self.store, self.intent, Shadow(self.shadow.open, SIZE))

    def fetch(self, chunks: list[int]) -> None:
        for chunk in chunks:
            claim = self.store.claim(chunk, chunk + 1)
            assert claim is not None
            start, length = self.store.byte_range(claim)
            self.store.land(claim, memoryview(self.source[start : start + length]))

    def kill_at(self, operation: int, victim: str, seed: int) -> None:
        """Let something die at the shadow's operation of that number from now."""
        at = self.shadow.operations + operation

        def before(count: int) -> None:
            if count < at or self.dead.is_set():
                return
            self.shadow.before = lambda _count: None
            if victim in {"shadow dies", "both die"}:
                self.shadow.die(seed)
            if victim != "shadow dies":
                self.dead.set()
                raise Stopped

        self.shadow.before = before

    @rule(changes=CHANGES, fault=FAULT, operation=st.integers(1, 12), seed=st.integers(0, 2**32))
    def change(self, changes: list[tuple[str, tuple[int, int]]], fault: str, operation: int, seed: int) -> None:
        self.settle()
        if fault != "none":
            self.kill_at(operation, fault, seed)
        done: list[int] = []
        failed: list[WhimbrelError] = []
        after: list[dict[int, bytes]] = []
        ended = threading.Semaphore(0)
        # All fetches first: what a trim leaves out must not depend on when the thread comes to it.
        for kind, where in changes:
            if kind != "trim" or len(changes) > 1:
                self.fetch(self.store.needs(where[0] * SECTOR, min(where[1] * SECTOR, SIZE - where[0] * SECTOR)))
        for number, (kind, where) in enumerate(changes):
            offset = where[0] * SECTOR
            length = min(where[1] * SECTOR, SIZE - offset)

            def told(error: WhimbrelError | None, number: int = number) -> None:
                done.append(number)
                if error is not None:
                    failed.append(error)
                ended.release()

            if kind == "write":
                data = self.rng.randbytes(length)
                change = Change("write", offset, length, memoryview(data), done=told)
            else:
                data = bytes(length)
                change = Change("zero" if kind == "zero" else "trim", offset, length, done=told)
            first, count = (offset, length) if kind != "trim" else self.store.trimmable(offset, length)
            after.append(
                {
                    at: data[at * SECTOR - offset : (at + 1) * SECTOR - offset]
                    for at in range(first // SECTOR, (first + count) // SECTOR)
                }
            )
            self.mirror.submit(change)
        for _ in changes:
            while not ended.acquire(timeout=0.01):
                if self.dead.is_set():
                    break
        assert not failed
        dead = self.dead.is_set()
        if dead:
            self.mirror._sequence._thread.join(PATIENCE_S)
        else:
            assert done == list(range(len(changes)))
            self.shadow.before = lambda _count: None
        for number, contents in enumerate(after):
            for at, content in contents.items():
                if number in done:
                    self.allowed[at] = {content}
                else:
                    self.allowed[at].add(content)
        if dead:
            if fault == "host crashes":
                self.host_crashes(seed)
            else:
                self.server_died()
        self.check_shadow()

    def check_shadow(self) -> None:
        """What the shadow would hold if it died now, at worst."""
        for at, allowed in enumerate(self.allowed):
            assert self.sector(self.shadow.disk.stable, at) in allowed, f"sector {at} of the shadow"

    @rule()
    def settle(self) -> None:
        assert self.mirror.drain(PATIENCE_S)
        assert not self.mirror.holds(0, CHUNKS)
        for chunk in range(CHUNKS):
            start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, SIZE)
            truth = self.disk.now if self.map.is_local(chunk, chunk + 1) else self.source
            assert truth[start:end] == self.shadow.disk.stable[start:end], f"chunk {chunk} differs"
        self.check_shadow()
        for at in range(SECTORS):
            self.allowed[at] = {self.sector(self.shadow.disk.stable, at)}

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(chunk=st.integers(0, CHUNKS - 1))
    def hydrate(self, chunk: int) -> None:
        if not self.map.is_local(chunk, chunk + 1):
            self.fetch([chunk])

    @rule(seed=st.integers(0, 2**32))
    def shadow_dies_at_rest(self, seed: int) -> None:
        self.shadow.die(seed)

    @rule(seed=st.integers(0, 2**32), crash=st.booleans())
    def dies_at_rest(self, seed: int, crash: bool) -> None:
        self.settle()
        if crash:
            self.host_crashes(seed)
        else:
            self.server_died()

    def end(self) -> LossyMap:
        """Let go of the files as a death does."""
        self.mirror.stop()
        table = self.intent._table
        assert isinstance(table, LossyMap)
        left = bytes(table[:])
        stable = table.stable
        self.intent.close()
        (self.directory / "left").write_bytes(left)
        (self.directory / "stable").write_bytes(stable)
        with contextlib.suppress(OSError):
            self.map.close()
        return table

    def server_died(self) -> None:
        assert self.durable is not None
        self.end()
        (self.directory / "m.durable").write_bytes(self.durable.now)
        self.open()

    def host_crashes(self, seed: int) -> None:
        self.end()
        self.crash_files(seed)
        self.open()

    def crash_files(self, seed: int) -> None:
        """What a crash of the host leaves of the server's files, which are closed."""
        assert self.durable is not None
        rng = random.Random(seed)
        (self.directory / "m.durable").write_bytes(self.durable.crash(rng))
        self.durable = None
        now, stable = (self.directory / "left").read_bytes(), (self.directory / "stable").read_bytes()
        torn = bytes(rng.choice(pair) for pair in zip(now, stable, strict=True))
        (self.directory / "m.intent").write_bytes(stable[:4096] + torn[4096:])
        self.disk = LossyDisk(self.disk.crash(rng))
        self.boot += 1

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.end()
            shutil.rmtree(self.directory)
            self.patches.__exit__(None, None, None)


class LongMirrorMachine(MirrorMachine):
    """The same, for longer."""


MirrorMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
LongMirrorMachine.TestCase.settings = settings(MirrorMachine.TestCase.settings, max_examples=400)
TestMirrorModel = MirrorMachine.TestCase
TestMirrorModelLong = pytest.mark.timeout(1800)(pytest.mark.slow(LongMirrorMachine.TestCase))
