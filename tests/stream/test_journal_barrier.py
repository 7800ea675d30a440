"""The way of the guest's changes through the journal to the shadow, against a model, with power cuts at any moment.

Writes, the guest's flushes, turns of the follower and kills come in any order, one after the other on one thread, so
hypothesis finds the same again and makes it small. Before and after every operation of the shadow its power might be
cut: what is left must be all changes up to one of the guest's flushes, and of those up to the next flush any part.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.stream.shadows import ShadowServer
from tests.stream.test_mirror_model import MEMORY
from whimbrel.stream.mapfile import Header, fingerprint
from whimbrel.stream.protect import segment
from whimbrel.stream.protect.change import Change
from whimbrel.stream.protect.follower import Follower
from whimbrel.stream.protect.journal import Journal, open_journal
from whimbrel.stream.protect.lag import Lag
from whimbrel.stream.protect.segment import HEADER_BYTES, Segment
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped

SECTOR = 512
SECTORS = 8
SIZE = SECTORS * SECTOR
CUTS = 3
"""So many power cuts are thought of at each operation."""
Victim = Literal["none", "shadow", "server", "host"]
_real_write = segment._write_all
_real_cut = Segment.cut


class Model:
    """What was put into the journal, flush by flush, and everything that may be killed."""

    def __init__(self, seed: int, block: int) -> None:
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="wbarrier", dir=MEMORY))
        self.header = Header(4096, SIZE, bytes(16), fingerprint("s"), fingerprint("t"))
        self.base = self.rng.randbytes(SIZE)
        self.server = ShadowServer(self.base, block_bytes=block)
        self.server.before = lambda _count: self.at_shadow()
        self.log: list[tuple[int, bytes]] = []
        """Every change: its first sector and what it puts there."""
        self.barriers = [0]
        """How many changes lay before each flush."""
        self.durable = 0
        """So many changes survive a crash of the host."""
        self.synced: dict[str, int] = {}
        self.victim: Victim = "none"
        self.countdown = 0
        self.open(untouched=True, host=False)

    def open(self, *, untouched: bool, host: bool) -> None:
        self.journal: Journal = open_journal(self.directory / "j", self.header, untouched=untouched, host_crashed=host)
        shadow = Shadow(self.server.open, SIZE)
        lag = Lag(1 << 30, 1e9, applied=self.journal.applied, held=self.journal.held_at_open)
        self.follower = Follower(self.journal, shadow, lag, threading.Event())

    def close(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)

    # What happens

    def put(self, places: Sequence[tuple[int, int]], victim: Victim) -> None:
        """One batch; with a victim the journal gets the beginning of it."""
        changes = []
        for first, count in places:
            data = self.rng.randbytes(min(count, SECTORS - first) * SECTOR)
            self.log.append((first, data))
            changes.append(Change("write", first * SECTOR, len(data), memoryview(data)))
        before = len(self.log) - len(changes)
        if victim in {"none", "shadow"}:
            self.journal.put(changes)
            return
        with mock.patch.object(segment, "_write_all", self.torn), contextlib.suppress(Stopped):
            self.journal.put(changes)
        self.killed(victim, least=before)

    def torn(self, fd: int, at: int, buffers: Sequence[bytes | memoryview]) -> int:
        whole = b"".join(buffers)
        _real_write(fd, at, [whole[: self.rng.randrange(len(whole) + 1)]])
        raise Stopped

    def flush(self) -> None:
        """As ``Journaled`` does it before the target is synced."""
        self.journal.barrier()
        self.journal.sync()
        self.durable = len(self.log)
        if self.barriers[-1] != len(self.log):
            self.barriers.append(len(self.log))

    def follow(self, victim: Victim, operation: int) -> None:
        """One turn; the victim dies at the shadow's operation of that number."""
        self.victim, self.countdown = victim, operation
        try:
            self.follower.step()
        except Stopped:
            self.killed(victim, least=len(self.log))
        self.victim = "none"
        self.power_cut()

    def killed(self, victim: Victim, *, least: int) -> None:
        """The server, or its whole host, dies and starts again. ``least``: so many changes survive the process."""
        self.victim = "none"
        self.journal.close()
        if victim == "host":
            self.lose()
            least = self.durable
        self.open(untouched=not self.log, host=victim == "host")
        # What nobody was told to be done may be gone.
        assert least <= self.journal.last <= len(self.log)
        del self.log[self.journal.last :]
        self.barriers = [barrier for barrier in self.barriers if barrier <= len(self.log)]
        self.power_cut()

    def lose(self) -> None:
        """Of what was not synced any sectors are left; the file may be shorter."""
        for path in (self.directory / "j").glob("*.segment"):
            content = bytearray(path.read_bytes())
            stable = self.synced.get(path.name, HEADER_BYTES)
            for start in range(stable, len(content), SECTOR):
                if self.rng.random() < 0.4:
                    place = slice(start, min(start + SECTOR, len(content)))
                    content[place] = bytes(place.stop - place.start)
            if self.rng.random() < 0.3:
                del content[self.rng.randint(stable, len(content)) :]
            path.write_bytes(content)
            self.synced[path.name] = len(content)

    def at_shadow(self) -> None:
        self.power_cut()
        self.countdown -= 1
        if self.victim == "none" or self.countdown:
            return
        if self.victim == "shadow":
            self.victim = "none"
            self.server.die(self.rng.randrange(1 << 32))
            return
        raise Stopped

    # What must be

    def power_cut(self) -> None:
        """Whatever is left of the shadow is a disk whose power failed."""
        disk = self.server.disk
        for content in (bytes(disk.stable), bytes(disk.now), *(disk.crash(self.rng) for _ in range(CUTS))):
            windows = zip(self.barriers, [*self.barriers[1:], len(self.log)], strict=True)
            assert any(self.fits(content, first, last) for first, last in windows), (
                f"the shadow is no disk whose power failed; flushes after {self.barriers} of {len(self.log)} changes"
            )

    def fits(self, content: bytes, first: int, last: int) -> bool:
        """Whether it has all changes up to ``first``, and any part of those up to ``last``."""
        allowed = [{sector(self.base, at)} for at in range(SECTORS)]
        for number, (place, data) in enumerate(self.log[:last]):
            for at in range(len(data) // SECTOR):
                if number < first:
                    allowed[place + at].clear()
                allowed[place + at].add(sector(data, at))
        return all(sector(content, at) in allowed[at] for at in range(SECTORS))

    def ends_alike(self) -> None:
        """All that the journal has arrives, once nothing dies any more."""
        self.follower.catch_up()
        self.power_cut()
        state = bytearray(self.base)
        for place, data in self.log:
            state[place * SECTOR : place * SECTOR + len(data)] = data
        assert bytes(self.server.disk.stable) == state
        assert self.journal.applied == self.journal.last == len(self.log)


def sector(content: bytes, at: int) -> bytes:
    return content[at * SECTOR : (at + 1) * SECTOR]


@contextlib.contextmanager
def in_the_model(model: Model) -> Iterator[None]:
    """No pauses; what is durable is what the model says; segments that fill up."""

    def sync(which: Segment) -> None:
        model.synced[which.path.name] = which.end

    def cut(which: Segment) -> None:
        _real_cut(which)
        model.synced[which.path.name] = which.end

    with (
        mock.patch("whimbrel.stream.protect.shadow.FIRST_PAUSE_S", 0.0),
        mock.patch("whimbrel.stream.protect.shadow.SETTLE_S", 0.0),
        mock.patch("whimbrel.stream.protect.journal.SEGMENT_BYTES", 6 * SECTOR),
        mock.patch.object(Segment, "sync", sync),
        mock.patch.object(Segment, "cut", cut),
    ):
        yield


PLACES = st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 4)), min_size=1, max_size=3)
DEATHS = st.sampled_from(["none", "none", "server", "host"])
STEPS = st.one_of(
    st.tuples(st.just("put"), PLACES, DEATHS),
    st.just(("flush",)),
    st.tuples(st.just("follow"), st.sampled_from(["none", "shadow", "server", "host"]), st.integers(1, 8)),
    st.tuples(st.just("killed"), st.sampled_from(["server", "host"])),
)


def run(seed: int, block: int, steps: Sequence[tuple[object, ...]]) -> None:
    model = Model(seed, block)
    try:
        with in_the_model(model):
            for name, *arguments in steps:
                if name == "killed":
                    model.killed(*arguments, least=len(model.log))  # type: ignore[arg-type]
                else:
                    getattr(model, str(name))(*arguments)
            model.ends_alike()
    finally:
        model.close()


TWO_FLUSHES = (("put", [(0, 2)], "none"), ("flush",), ("put", [(4, 2)], "none"), ("flush",), ("follow", "none", 1))
ONE_PLACE = (("put", [(0, 2)], "none"), ("flush",), ("follow", "none", 1))
WRITTEN_TWICE = (*ONE_PLACE, *ONE_PLACE, ("killed", "server"), ("put", [(2, 1)], "none"), ("follow", "none", 1))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32), st.sampled_from([512, 1024]), st.lists(STEPS, min_size=3, max_size=14))
@example(1, 512, TWO_FLUSHES)
@example(2, 512, [*TWO_FLUSHES, ("put", [(0, 1)], "none"), ("follow", "host", 2), ("follow", "shadow", 3)])
@example(3, 512, WRITTEN_TWICE)
def test_the_shadow_is_at_any_moment_a_disk_whose_power_failed(
    seed: int, block: int, steps: Sequence[tuple[object, ...]]
) -> None:
    run(seed, block, steps)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32), st.sampled_from([512, 1024]), st.lists(STEPS, min_size=5, max_size=30))
def test_the_same_for_long(seed: int, block: int, steps: Sequence[tuple[object, ...]]) -> None:
    run(seed, block, steps)
