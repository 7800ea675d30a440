"""Clients at the server against a model: any requests, fetches that begin, end and fail in any order, and hang-ups.

What must hold besides every byte: a request that lacks nothing is answered at once, whatever its connection waits for
(a miss blocks no hit); a chunk is on its way once, however many want it; a chunk that somebody waits for is always on
its way or asked for; what a dead connection had parked is never done.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK
from tests.stream.test_mirror_model import MEMORY
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.nbd import protocol as p
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.listener import Listener, listen_unix
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.store import Claim, Store

UNIT = CHUNK // 4
"""Requests are so aligned: two may share a chunk and have no byte in common."""
CHUNKS = 5
UNITS = CHUNKS * 4 - 1
SIZE = UNITS * UNIT
CLIENTS = 2
COMMANDS = {
    "read": p.CMD_READ, "write": p.CMD_WRITE, "zero": p.CMD_WRITE_ZEROES, "trim": p.CMD_TRIM, "cache": p.CMD_CACHE,
}  # fmt: skip


@dataclass
class Asked:
    """A request that waits for chunks."""

    kind: str
    first: int
    last: int
    before: bytes
    """What is there until it is done."""
    data: bytes = b""
    lacks: set[int] = field(default_factory=set)


class Scene:
    """The server's half that talks to clients, over a store whose fetches the test does."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="wconn", dir=MEMORY))
        self.source = self.rng.randbytes(SIZE)
        self.model = bytearray(self.source)
        target = self.directory / "t.raw"
        target.write_bytes(self.rng.randbytes(SIZE))
        self.device = FileDevice(target, writable=True)
        self.map = open_map(self.directory / "m", size_bytes=SIZE, source="s", target="t")
        self.store = Store(self.device, self.map)
        self.demanded: set[int] = set()
        self.store.want = self.demanded.update
        self.listener = Listener(self.store, Statistics(), lambda *_: None, export="")
        self.listener.listen(listen_unix(self.directory / "nbd"))
        self.clients = [self.client() for _ in range(CLIENTS)]
        self.parked: list[dict[int, Asked]] = [{} for _ in range(CLIENTS)]
        self.claims: list[Claim] = []

    def client(self) -> RawClient:
        return RawClient(self.directory / "nbd", timeout_s=60)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.listener.stop()
        self.map.close()
        self.device.close()
        shutil.rmtree(self.directory)

    # Steps

    def request(self, who: int, kind: str, first: int, count: int, fua: bool) -> None:
        """Ask for something that shares no byte with what is on its way."""
        last = min(first + count, UNITS)
        if any(first < other.last and other.first < last for each in self.parked for other in each.values()):
            return
        asked = Asked(kind, first, last, bytes(self.model[first * UNIT : last * UNIT]))
        chunks = range(first // 4, (last - 1) // 4 + 1)
        missing = {chunk for chunk in chunks if not self.map.is_local(chunk, chunk + 1)}
        partial = {chunk for chunk in missing if not self.covers(first, last, chunk)}
        if kind == "write":
            asked.data = self.rng.randbytes((last - first) * UNIT)
        asked.lacks = {"read": missing, "cache": missing, "trim": set()}.get(kind, partial)
        spared = partial if kind == "trim" else set()
        client = self.clients[who]
        length = 0 if kind == "write" else (last - first) * UNIT
        flags = p.CMD_FLAG_FUA if fua and kind in {"write", "zero", "trim"} else 0
        cookie = client.post(COMMANDS[kind], first * UNIT, length, data=asked.data, flags=flags)
        if kind not in {"read", "cache"}:
            for unit in range(first, last):
                if unit // 4 not in spared:
                    place = slice(unit * UNIT, (unit + 1) * UNIT)
                    start = (unit - first) * UNIT
                    self.model[place] = asked.data[start : start + UNIT] or bytes(UNIT)
        if asked.lacks:
            self.parked[who][cookie] = asked
            self.flush(who)  # it has been read by then, and parked
        else:
            self.answered(who, {cookie: asked})
            # A whole write makes a chunk local: for its own bytes no other waited, but for the chunk.
            self.arrived()

    def flush(self, who: int) -> None:
        """Answered at once, whatever is parked."""
        cookie = self.clients[who].post(p.CMD_FLUSH)
        assert self.clients[who].take() == (cookie, 0, b"")

    def fetch_begins(self, first: int, count: int) -> None:
        claim = self.store.claim(first, min(first + count, CHUNKS))
        if claim is None:
            return
        for other in self.claims:
            assert claim.last <= other.first or other.last <= claim.first, "a chunk is on its way twice"
        self.claims.append(claim)
        self.demanded.difference_update(range(claim.first, claim.last))

    def fetch_ends(self, which: int, fails: bool) -> None:
        if not self.claims:
            return
        claim = self.claims.pop(which % len(self.claims))
        if fails:
            self.store.abandon(claim)
        else:
            self.land(claim)
        self.arrived()

    def hang_up(self, who: int) -> None:
        """What was parked is dropped before the next connection may speak, so its bytes are as they were."""
        dropped = list(self.parked[who].values())
        self.clients[who].close()
        self.clients[who] = self.client()
        self.parked[who] = {}
        for asked in dropped:
            self.model[asked.first * UNIT : asked.last * UNIT] = asked.before
        self.flush(who)

    # What must be

    def arrived(self) -> None:
        """Whoever lacks nothing any more is answered, and nobody else."""
        for who, parked in enumerate(self.parked):
            ready = {}
            for cookie, asked in list(parked.items()):
                asked.lacks = {chunk for chunk in asked.lacks if not self.map.is_local(chunk, chunk + 1)}
                if not asked.lacks:
                    ready[cookie] = parked.pop(cookie)
            self.answered(who, ready)

    def answered(self, who: int, ready: dict[int, Asked]) -> None:
        for _ in range(len(ready)):
            cookie, error, data = self.clients[who].take()
            assert cookie in ready, "somebody was answered who still lacks something"
            assert error == 0
            asked = ready.pop(cookie)
            if asked.kind == "read":
                assert data == self.model[asked.first * UNIT : asked.last * UNIT]

    def nobody_is_forgotten(self) -> None:
        flying = {chunk for claim in self.claims for chunk in range(claim.first, claim.last)}
        for parked in self.parked:
            for asked in parked.values():
                assert asked.lacks <= flying | self.demanded, "somebody waits for what nobody brings"

    def ends_well(self) -> None:
        while self.claims:
            self.fetch_ends(0, False)
        for chunk in range(CHUNKS):
            self.fetch_begins(chunk, 1)
            self.fetch_ends(0, False)
        assert not any(self.parked)
        for client in self.clients:
            assert client.ask(p.CMD_READ, 0, SIZE) == self.model

    # Inner

    def covers(self, first: int, last: int, chunk: int) -> bool:
        return first <= chunk * 4 and min(chunk * 4 + 4, UNITS) <= last

    def land(self, claim: Claim) -> None:
        start, length = self.store.byte_range(claim)
        self.store.land(claim, memoryview(self.source[start : start + length]))


REQUESTS = st.tuples(
    st.just("request"),
    st.integers(0, CLIENTS - 1),
    st.sampled_from(sorted(COMMANDS)),
    st.integers(0, UNITS - 1),
    st.integers(1, 10),
    st.booleans(),
)
STEPS = st.one_of(
    REQUESTS,
    REQUESTS,
    st.tuples(st.just("fetch_begins"), st.integers(0, CHUNKS - 1), st.integers(1, CHUNKS)),
    st.tuples(st.just("fetch_ends"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("hang_up"), st.integers(0, CLIENTS - 1)),
)


def run(seed: int, steps: Sequence[tuple[object, ...]]) -> None:
    with contextlib.closing(Scene(seed)) as scene:
        for name, *arguments in steps:
            getattr(scene, str(name))(*arguments)
            scene.nobody_is_forgotten()
        scene.ends_well()


TAKEN_AWAY = (("fetch_begins", 0, 2), ("request", 0, "read", 6, 1, False))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32), st.lists(STEPS, min_size=4, max_size=20))
@example(1, [*TAKEN_AWAY, ("request", 0, "zero", 0, 4, False), ("fetch_ends", 0, False)])
@example(2, [*TAKEN_AWAY, ("request", 1, "trim", 0, 4, False), ("fetch_ends", 0, False)])
@example(3, [*TAKEN_AWAY, ("request", 1, "write", 5, 1, True), ("hang_up", 1), ("fetch_ends", 0, True)])
def test_any_requests_fetches_and_hang_ups(seed: int, steps: Sequence[tuple[object, ...]]) -> None:
    run(seed, steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32), st.lists(STEPS, min_size=10, max_size=60))
def test_the_same_for_long(seed: int, steps: Sequence[tuple[object, ...]]) -> None:
    run(seed, steps)
