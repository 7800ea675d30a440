"""Clients at the server: handshake, refusals, misses that delay nobody, a dead connection that must not speak late."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.stream.rawclient import OptionClient, RawClient, Refused, counted
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, until
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import list_exports, open_nbd
from whimbrel.nbd import protocol as p
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.handshake import FLAGS
from whimbrel.stream.hydration import Access
from whimbrel.stream.listener import Listener, listen_tcp, listen_unix
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.store import Store

SIZE = 4 * MIB


@dataclass
class Stage:
    """A listener over a store whose fetches the test does by hand."""

    path: Path
    store: Store
    listener: Listener
    statistics: Statistics
    wanted: list[int]
    accesses: list[tuple[int, int, str]]

    def fetch(self, chunk: int, fill: bytes = b"s") -> None:
        claim = self.store.claim(chunk, chunk + 1)
        assert claim is not None
        self.store.land(claim, memoryview(fill * CHUNK))


@pytest.fixture
def stage(spot: Path) -> Iterator[Stage]:
    target = spot / "t.raw"
    with target.open("wb") as file:
        file.truncate(SIZE)
    device = FileDevice(target, writable=True)
    chunkmap = open_map(spot / "m", size_bytes=SIZE, source="s", target="t")
    store, statistics = Store(device, chunkmap), Statistics()
    wanted: list[int] = []
    accesses: list[tuple[int, int, str]] = []
    store.want = wanted.extend

    def accessed(offset: int, length: int, access: Access, at: float) -> None:
        assert 0 <= time.monotonic() - at < 60
        accesses.append((offset, length, access))

    listener = Listener(store, statistics, accessed, export="vda")
    listener.listen(listen_unix(spot / "nbd"))
    yield Stage(spot / "nbd", store, listener, statistics, wanted, accesses)
    listener.stop()
    chunkmap.close()
    device.close()


def test_options(stage: Stage) -> None:
    client = OptionClient(stage.path)
    assert client.ask(p.OPT_LIST) == [(p.REP_SERVER, counted(b"vda")), (p.REP_ACK, b"")]
    assert client.ask(p.OPT_LIST, b"x")[0][0] == p.REP_ERR_INVALID
    assert client.ask(77)[0][0] == p.REP_ERR_UNSUP
    assert client.ask(p.OPT_STARTTLS)[0][0] == p.REP_ERR_POLICY
    query = counted(b"vda") + struct.pack(">I", 1) + counted(b"base:allocation")
    assert client.ask(p.OPT_SET_META_CONTEXT, query)[0][0] == p.REP_ERR_INVALID  # no structured replies yet
    assert client.ask(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
    assert client.ask(p.OPT_SET_META_CONTEXT, query) == [
        (p.REP_META_CONTEXT, struct.pack(">I", 1) + b"base:allocation"),
        (p.REP_ACK, b""),
    ]
    listed = client.ask(p.OPT_LIST_META_CONTEXT, counted(b"") + struct.pack(">I", 0))
    assert [body[4:] for _, body in listed[:-1]] == [b"base:allocation", b"x-whimbrel:local"]
    listed = client.ask(p.OPT_LIST_META_CONTEXT, counted(b"") + struct.pack(">I", 1) + counted(b"x-whimbrel:"))
    assert [body[4:] for _, body in listed[:-1]] == [b"x-whimbrel:local"]
    for broken in (b"", counted(b"vda"), counted(b"vda") + struct.pack(">I", 2) + counted(b"a"), query + b"!"):
        assert client.ask(p.OPT_SET_META_CONTEXT, broken)[0][0] == p.REP_ERR_INVALID
    for broken in (b"", b"\0\0\0\7vda", counted(b"vda") + b"\0\1"):
        assert client.ask(p.OPT_GO, broken)[0][0] == p.REP_ERR_INVALID
    assert client.ask(p.OPT_INFO, counted(b"vdb") + b"\0\0")[0][0] == p.REP_ERR_UNKNOWN
    told = client.ask(p.OPT_INFO, counted(b"vda") + b"\0\0")
    assert told[0] == (p.REP_INFO, p.EXPORT_INFO.pack(p.INFO_EXPORT, SIZE, FLAGS))
    assert told[1] == (p.REP_INFO, p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, 1, 65536, 32 << 20))
    assert client.ask(p.OPT_ABORT) == [(p.REP_ACK, b"")]
    client.close()
    assert list_exports(NbdEndpoint(unix_path=str(stage.path))) == ["vda"]


def test_what_is_no_client_is_dropped(stage: Stage) -> None:
    client = OptionClient(stage.path)
    client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ConnectionError):
        client.read(1)
    with pytest.raises(ConnectionError):
        RawClient(stage.path, b"vdb")
    known = RawClient(stage.path)
    known.sock.sendall(bytes(p.REQUEST.size))
    with pytest.raises(ConnectionError):
        known.read(1)
    until(lambda: not stage.listener.clients, "end of the clients")


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (p.CMD_READ, SIZE - 1, 2, 0, p.EINVAL),
        (p.CMD_READ, 1 << 63, 1, 0, p.EINVAL),
        (p.CMD_READ, 0, 0, 0, p.EINVAL),
        (p.CMD_READ, 0, 1, p.CMD_FLAG_NO_HOLE, p.EINVAL),
        (p.CMD_WRITE_ZEROES, SIZE - 1, 2, 0, p.ENOSPC),
        (p.CMD_TRIM, SIZE, 1, 0, p.EINVAL),
        (p.CMD_FLUSH, 0, 1, 0, p.EINVAL),
        (p.CMD_BLOCK_STATUS, 0, 1, 0, p.EINVAL),
        (99, 0, 1, 0, p.EINVAL),
    ],
)
def test_refusals(stage: Stage, command: int, offset: int, length: int, flags: int, error: int) -> None:
    client = RawClient(stage.path)
    with pytest.raises(Refused) as refused:
        client.ask(command, offset, length, flags=flags)
    assert refused.value.args == (error,)
    stage.fetch(0)
    assert client.ask(p.CMD_READ, 0, 4) == b"ssss"
    client.close()


def test_a_write_beyond_the_end_is_refused_and_the_stream_goes_on(stage: Stage) -> None:
    client = RawClient(stage.path)
    with pytest.raises(Refused) as refused:
        client.ask(p.CMD_WRITE, SIZE - 10, data=b"x" * 20)
    assert refused.value.args == (p.ENOSPC,)
    client.ask(p.CMD_WRITE, 0, data=b"y" * CHUNK, flags=p.CMD_FLAG_FUA)
    assert client.ask(p.CMD_READ, 0, 4) == b"yyyy"
    client.close()


def test_misses_delay_neither_hits_nor_flushes(stage: Stage) -> None:
    client = RawClient(stage.path)
    stage.fetch(40)
    misses = [client.post(p.CMD_READ, chunk * CHUNK, 512) for chunk in range(30)]
    partial = client.post(p.CMD_WRITE, 31 * CHUNK + 5, data=b"new")
    cached = client.post(p.CMD_CACHE, 32 * CHUNK, CHUNK)
    for _ in range(20):
        hit = client.post(p.CMD_READ, 40 * CHUNK, 4)
        assert client.take() == (hit, 0, b"ssss")
    whole = client.post(p.CMD_WRITE, 5 * CHUNK, data=b"w" * CHUNK)
    answers = [client.take(), client.take()]
    assert sorted(answers) == [(misses[5], 0, b"w" * 512), (whole, 0, b"")]
    for command, at in ((p.CMD_FLUSH, 0), (p.CMD_TRIM, 41 * CHUNK)):
        wanted = client.post(command, at, CHUNK if at else 0)
        assert client.take() == (wanted, 0, b"")
    assert set(stage.wanted) == {*range(30), 31, 32}
    stage.fetch(7, b"7")
    assert client.take() == (misses[7], 0, b"7" * 512)
    stage.fetch(31)
    assert client.take() == (partial, 0, b"")
    assert client.ask(p.CMD_READ, 31 * CHUNK, 12) == b"sssssnewssss"
    stage.fetch(32)
    assert client.take() == (cached, 0, b"")
    assert stage.statistics.misses == 31
    assert stage.statistics.miss_latency.count == 3
    assert (31 * CHUNK + 5, 3, "write") in stage.accesses
    assert (41 * CHUNK, CHUNK, "trim") in stage.accesses
    client.close()


def test_who_waits_too_long_by_policy_gets_an_error(stage: Stage) -> None:
    client = RawClient(stage.path)
    cookie = client.post(p.CMD_READ, 0, 512)
    until(lambda: stage.wanted == [0], "miss")
    stage.store.fail_waiters(Unavailable("the source is gone"))
    assert client.take() == (cookie, p.EIO, b"")
    device = open_nbd(NbdEndpoint(unix_path=str(stage.path)), structured_lanes=True)
    lane = device.lane()
    lane.submit_read(0, memoryview(bytearray(512)))
    until(lambda: stage.store.waiting_chunks == 1, "miss")
    stage.store.fail_waiters(Unavailable("the source is gone"))
    with pytest.raises(Unavailable) as caught:
        lane.reap()
    assert "the source is gone" in str(caught.value)
    device.close()
    client.close()


def test_writes_of_a_dead_connection_never_land_after_those_of_the_next(stage: Stage) -> None:
    """A backlog of the old connection waits to be read while the client is back with newer data."""
    for round_number in range(20):
        old = RawClient(stage.path)
        for _ in range(40):
            old.post(p.CMD_WRITE, 0, data=b"o" * CHUNK)
        old.close()
        new = RawClient(stage.path)
        mine = bytes([round_number + 1]) * CHUNK
        new.ask(p.CMD_WRITE, 0, data=mine)
        time.sleep(0.01)
        assert new.ask(p.CMD_READ, 0, CHUNK) == mine
        new.close()


def test_parked_writes_of_a_dead_connection_are_dropped(stage: Stage) -> None:
    old = RawClient(stage.path)
    old.post(p.CMD_WRITE, 10, data=b"old")
    until(lambda: stage.wanted == [0], "miss")
    old.close()
    new = RawClient(stage.path)
    new.ask(p.CMD_WRITE, 0, data=b"n" * CHUNK)
    time.sleep(0.05)
    assert new.ask(p.CMD_READ, 0, CHUNK) == b"n" * CHUNK
    new.close()


def test_a_client_with_too_much_parked_is_not_read_from(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.stream.connection.PARKED_REQUESTS", 8)
    client = RawClient(stage.path)
    cookies = [client.post(p.CMD_READ, chunk * CHUNK, 16) for chunk in range(20)]
    until(lambda: stage.store.waiting_chunks == 8, "misses")
    time.sleep(0.1)
    assert stage.store.waiting_chunks == 8  # the ninth waits outside
    for chunk in range(20):
        until(partial(stage.wanted.__contains__, chunk), "miss")
        stage.fetch(chunk)
    assert sorted(client.take()[0] for _ in cookies) == cookies
    client.close()


def test_many_connections_and_an_end_that_cuts_them_off(stage: Stage) -> None:
    clients = [RawClient(stage.path) for _ in range(20)]
    for number, client in enumerate(clients):
        client.ask(p.CMD_WRITE, number * CHUNK, data=bytes([number]) * CHUNK)
    clients[0].ask(p.CMD_FLUSH)
    for number, client in enumerate(clients):
        assert client.ask(p.CMD_READ, (19 - number) * CHUNK, 3) == bytes([19 - number]) * 3
    assert stage.listener.clients == 20
    clients[3].post(p.CMD_READ, 60 * CHUNK, 1)  # a miss that never ends
    ender = threading.Thread(target=stage.listener.stop)
    ender.start()
    ender.join(PATIENCE_S)
    assert not ender.is_alive()
    with pytest.raises(OSError):
        clients[0].ask(p.CMD_READ, 0, 1)


def test_a_polite_end_waits_for_what_was_asked(stage: Stage) -> None:
    client = RawClient(stage.path)
    client.post(p.CMD_WRITE, 10, data=b"late")
    until(lambda: stage.wanted == [0], "miss")
    client.post(p.CMD_DISC)
    stage.fetch(0)
    assert client.take()[1] == 0
    with pytest.raises(ConnectionError):
        client.read(1)
    view = memoryview(bytearray(4))
    stage.store.read(10, view)
    assert bytes(view) == b"late"


def test_places_to_listen(spot: Path) -> None:
    first = listen_unix(spot / "a", 0o660)
    assert (spot / "a").stat().st_mode & 0o777 == 0o660
    with pytest.raises(Conflict, match="another server"):
        listen_unix(spot / "a")
    first.close()
    listen_unix(spot / "a").close()
    listen_unix(spot / "c", 0o666, client=(os.getuid(), os.getgid())).close()
    assert (spot / "c").stat().st_mode & 0o777 == 0o600
    (spot / "b").write_text("precious", encoding="ascii")
    with pytest.raises(Conflict, match="no socket"):
        listen_unix(spot / "b")
    with pytest.raises(Unavailable):
        listen_unix(spot / "missing" / "c")
    taken = listen_tcp("127.0.0.1", 0)
    with pytest.raises(Unavailable):
        listen_tcp("127.0.0.1", taken.getsockname()[1])
    taken.close()
