"""Journal against a model: changes, flushes, deaths of the shadow, the server and the host, at any operation.

At any moment the shadow is what a disk is whose power fails: all changes up to a flush of the guest, and of those up to
the next flush any part. After a death of the server both sides end with all that was acknowledged; after one of the
host with a beginning of the changes that has at least what was flushed.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, rule

from tests.stream.streams import PATIENCE_S
from tests.stream.test_mirror_model import CHANGES, CHUNK, CHUNKS, SECTOR, SECTORS, SIZE, LossyMap, MirrorMachine
from whimbrel.stream.protect import segment
from whimbrel.stream.protect.change import Change
from whimbrel.stream.protect.journal import Journal, open_journal
from whimbrel.stream.protect.journaled import Journaled
from whimbrel.stream.protect.segment import HEADER_BYTES, Segment
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped

PLACES = st.sampled_from(["shadow", "journal", "target", "note"])
VICTIMS = st.sampled_from(["none", "shadow", "server", "host", "server and shadow"])
_real_write, _real_sync, _real_cut = segment._write_all, Segment.sync, Segment.cut


class JournalMachine(MirrorMachine):
    """``log``: the changes since both sides were last seen alike, as contents of sectors; ``base`` before them."""

    @initialize(seed=st.integers(0, 2**32), block=st.sampled_from([1, 512, 1024]))
    def begin(self, seed: int, block: int) -> None:
        self.machinery = contextlib.ExitStack()
        for name, value in (
            ("journal.SEGMENT_BYTES", 3 * CHUNK),
            ("journal.BATCH_CHANGES", 4),
            ("lag.LEAST_TURN_BYTES", 2 * CHUNK),
            ("lag.FIRST_BYTES", 1 << 30),
            ("segment._write_all", self.write_all),
        ):
            self.machinery.enter_context(mock.patch(f"whimbrel.stream.protect.{name}", value))
        machine = self

        def sync(which: Segment) -> None:
            end = which.end
            _real_sync(which)
            # Two threads may sync at once, and the one that began earlier may end later.
            machine.synced[which.path.name] = max(end, machine.synced.get(which.path.name, 0))

        def cut(which: Segment) -> None:
            _real_cut(which)
            machine.synced[which.path.name] = which.end

        def create(directory: Path, first: int, owner: bytes) -> Segment:
            # The dead begin no segment behind one whose end they left torn.
            if machine.dead.is_set():
                raise Stopped
            return segment.create(directory, first, owner)

        self.machinery.enter_context(mock.patch("whimbrel.stream.protect.journal.create", create))
        self.machinery.enter_context(mock.patch.object(Segment, "sync", sync))
        self.machinery.enter_context(mock.patch.object(Segment, "cut", cut))
        self.synced: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.ending = threading.Event()
        self.arming = threading.Lock()
        """Who has disarmed knows that nothing dies any more."""
        self.armed: tuple[str, str, int] | None = None
        self.operations = 0
        self.seed = 0
        self.victim: str | None = None
        self.torn = False
        self.wrong: AssertionError | None = None
        super().begin(seed, block)
        self.base = [self.sector(self.source, at) for at in range(SECTORS)]
        self.log: list[dict[int, bytes]] = []
        self.acknowledged = self.flushed = 0
        self.barriers = [0]

    def protected(self) -> Journaled:
        self.ending.clear()
        self.disk.before_write = lambda: self.operation("target")
        self.shadow.before = lambda _count: self.at_shadow()
        untouched = not self.map.written_chunks
        self.journal: Journal = open_journal(
            self.directory / "m.journal", self.map.header, untouched=untouched, host_crashed=self.intent.host_crashed
        )
        shadow = Shadow(self.shadow.open, SIZE)
        return Journaled(self.store, self.intent, shadow, self.journal, max_lag_bytes=1 << 30, max_lag_s=1e9)

    # Faults

    def arm(self, victim: str, place: str, operation: int, seed: int) -> None:
        """Let something die at the operation of that number from now, at that place."""
        with self.arming:
            self.operations, self.seed = 0, seed
            self.armed = None if victim == "none" else (victim, place, operation)

    def disarm(self) -> None:
        with self.arming:
            self.armed = None

    def operation(self, place: str) -> None:
        if place == "target" and threading.current_thread().name != "protect":
            return
        if self.dead.is_set():
            raise Stopped
        with self.arming:
            armed = self.armed
            if armed is None or armed[1] != place:
                return
            self.operations += 1
            if self.operations < armed[2]:
                return
            self.armed = None
            if "shadow" in armed[0]:
                self.shadow.die(self.seed)
            if armed[0] != "shadow":
                self.victim = armed[0]
                self.dead.set()
                raise Stopped

    def at_shadow(self) -> None:
        if threading.current_thread().name == "journal":
            # In the middle of what the follower sends, which is the moment when flushes could get mixed up.
            try:
                self.check_shadow()
            except AssertionError as wrong:
                self.wrong = wrong
                raise
        while not self.gate.wait(0.002):
            if self.ending.is_set():
                raise Stopped
        self.operation("shadow")

    def write_all(self, fd: int, at: int, buffers: Sequence[bytes | memoryview]) -> int:
        whole = b"".join(buffers)
        try:
            self.operation("note" if threading.current_thread().name == "journal" else "journal")
        except Stopped:
            if self.armed is None and self.victim is not None and not self.torn:
                self.torn = True
                _real_write(fd, at, [whole[: random.Random(self.seed).randrange(len(whole) + 1)]])
            raise
        return _real_write(fd, at, buffers)

    # What may be

    def state(self, count: int) -> list[bytes]:
        found = list(self.base)
        for contents in self.log[:count]:
            for at, content in contents.items():
                found[at] = content
        return found

    def check_shadow(self) -> None:
        """What the shadow would hold if it died now."""
        if self.wrong is not None:
            raise self.wrong
        with self.shadow.disk._lock:
            stable = bytes(self.shadow.disk.stable)
        for content in (stable, self.shadow.disk.crash(self.rng)):
            if not any(
                self.fits(content, first, last)
                for first, last in zip(self.barriers, [*self.barriers[1:], len(self.log)], strict=True)
            ):
                raise AssertionError(f"the shadow is no disk whose power failed: {self.barriers}, {len(self.log)}")

    def fits(self, content: bytes, first: int, last: int) -> bool:
        """Whether it has all changes up to ``first``, and any part of those up to ``last``."""
        state = self.state(first)
        for at in range(SECTORS):
            found = self.sector(content, at)
            if found != state[at] and all(contents.get(at) != found for contents in self.log[first:last]):
                return False
        return True

    def check_readable(self) -> None:
        """What the guest may read while target and shadow are being made alike."""
        states = [self.state(count) for count in range(self.floor, len(self.log) + 1)]
        for chunk in range(CHUNKS):
            if self.mirror.holds(chunk, chunk + 1) or not self.map.is_local(chunk, chunk + 1):
                continue
            content = bytes(self.disk.now)
            for at in range(chunk * CHUNK // SECTOR, min((chunk + 1) * CHUNK, SIZE) // SECTOR):
                found = self.sector(content, at)
                assert any(state[at] == found for state in states), f"sector {at} may be read and is wrong"

    # Rules

    @rule(changes=CHANGES, victim=VICTIMS, place=PLACES, operation=st.integers(1, 5), seed=st.integers(0, 2**32))
    def change(
        self, changes: list[tuple[str, tuple[int, int]]], victim: str, place: str, operation: int, seed: int
    ) -> None:
        ended = threading.Semaphore(0)
        prepared: list[Change] = []
        for kind, where in changes:
            if kind != "trim" or len(changes) > 1:
                self.fetch(self.store.needs(where[0] * SECTOR, min(where[1] * SECTOR, SIZE - where[0] * SECTOR)))

        def told(error: Exception | None) -> None:
            assert error is None
            self.acknowledged += 1
            ended.release()

        for kind, where in changes:
            offset = where[0] * SECTOR
            length = min(where[1] * SECTOR, SIZE - offset)
            data = self.rng.randbytes(length) if kind == "write" else bytes(length)
            first, count = (offset, length) if kind != "trim" else self.store.trimmable(offset, length)
            self.log.append(
                {
                    at: data[at * SECTOR - offset : (at + 1) * SECTOR - offset]
                    for at in range(first // SECTOR, (first + count) // SECTOR)
                }
            )
            if kind == "write":
                prepared.append(Change("write", offset, length, memoryview(data), done=told))
            else:
                prepared.append(Change("zero" if kind == "zero" else "trim", offset, length, done=told))
        self.arm(victim, place, operation, seed)
        for one in prepared:
            self.mirror.submit(one)
        for _ in prepared:
            while not ended.acquire(timeout=0.01):
                if not self.mirror._sequence._thread.is_alive():
                    break
        if victim != "none" and place in {"shadow", "note"} and self.gate.is_set():
            self.until(lambda: self.dead.is_set() or self.mirror.drain(0.02))
        self.disarm()
        self.check_shadow()
        if self.dead.is_set():
            self.recover(seed)

    def recover(self, seed: int) -> None:
        """Come back, perhaps dying again on the way, and look at both sides."""
        rng = random.Random(seed)
        self.floor = len(self.log)
        while True:
            self.reopen(rng.randrange(2**32))
            self.gate.set()
            self.check_readable()
            self.check_shadow()
            self.until(lambda: self.dead.is_set() or self.mirror.drain(0.02))
            self.disarm()
            if not self.dead.is_set():
                break
        self.rebase(self.floor)

    def reopen(self, seed: int) -> None:
        host = self.victim == "host"
        self.ending.set()
        self.end()
        floor = self.flushed if host else self.acknowledged
        self.floor = min(self.floor, floor)
        rng = random.Random(seed)
        self.torn, self.victim = False, None
        victim = rng.choice(["none", "none", "server", "host", "shadow"])
        self.arm(victim, rng.choice(["shadow", "target", "journal"]), rng.randint(1, 12), seed)
        self.open_after(host, seed)

    def open_after(self, host: bool, seed: int) -> None:
        assert self.durable is not None
        if host:
            self.lose_journal(random.Random(seed))
            self.crash_files(seed)
        else:
            (self.directory / "m.durable").write_bytes(self.durable.now)
        self.open()

    def lose_journal(self, rng: random.Random) -> None:
        """Of what was not synced any sectors are left; the file may be shorter."""
        for path in (self.directory / "m.journal").glob("*.segment"):
            content = bytearray(path.read_bytes())
            stable = self.synced.get(path.name, HEADER_BYTES)
            for start in range(stable - stable % SECTOR, len(content), SECTOR):
                if rng.random() < 0.3:
                    place = slice(max(start, stable), min(start + SECTOR, len(content)))
                    content[place] = bytes(place.stop - place.start)
            if rng.random() < 0.5:
                del content[rng.randint(stable, len(content)) :]
            path.write_bytes(content)
            self.synced[path.name] = len(content)

    def rebase(self, floor: int) -> None:
        """Both sides are alike, and hold a beginning of the changes of at least that many."""
        stable = bytes(self.shadow.disk.stable)
        for chunk in range(CHUNKS):
            start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, SIZE)
            truth = self.disk.now if self.map.is_local(chunk, chunk + 1) else self.source
            assert truth[start:end] == stable[start:end], f"chunk {chunk} differs"
        found = [self.sector(stable, at) for at in range(SECTORS)]
        assert any(self.state(count) == found for count in range(floor, len(self.log) + 1)), "no beginning of all"
        self.base, self.log, self.barriers = found, [], [0]
        self.acknowledged = self.flushed = 0

    @rule(changes=CHANGES)
    def more(self, changes: list[tuple[str, tuple[int, int]]]) -> None:
        self.change(changes, "none", "target", 1, 0)

    @rule(changes=CHANGES, seed=st.integers(0, 2**32))
    def flushed_ones(self, changes: list[tuple[str, tuple[int, int]]], seed: int) -> None:
        """As a database writes."""
        for one in changes:
            self.more([one])
            self.flush()
        self.change(changes, "host", "target", 1 + seed % 3, seed)

    @rule()
    def settle(self) -> None:
        # Not as a precondition: whether something died hangs on the threads, and a rule's choice must not.
        if len(self.log) <= 12:
            return
        self.gate.set()
        assert self.mirror.drain(PATIENCE_S)
        assert not self.mirror.holds(0, CHUNKS)
        self.rebase(len(self.log))

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.flushed = len(self.log)
        self.barriers.append(self.flushed)

    @rule()
    def shadow_is_slow(self) -> None:
        self.gate.clear()

    @rule(seed=st.integers(0, 2**32), crash=st.booleans())
    def dies_at_rest(self, seed: int, crash: bool) -> None:
        if self.log:
            self.victim = "host" if crash else "server"
            self.recover(seed)

    def end(self) -> LossyMap:
        self.ending.set()
        table = super().end()
        self.journal.close()
        return table

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            super().teardown()
            self.machinery.close()

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            if self.wrong is not None:
                raise self.wrong
            assert time.monotonic() < deadline, "it does not come to an end"


class LongJournalMachine(JournalMachine):
    """The same, for longer."""


JournalMachine.TestCase.settings = settings(MirrorMachine.TestCase.settings, max_examples=100, stateful_step_count=20)
LongJournalMachine.TestCase.settings = settings(JournalMachine.TestCase.settings, max_examples=1000)
TestJournalModel = JournalMachine.TestCase
TestJournalModelLong = pytest.mark.timeout(1800)(pytest.mark.slow(LongJournalMachine.TestCase))
