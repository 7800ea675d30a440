"""A streaming server read over HTTP: bytes, patience, and who goes first."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stream.http.servers import Client, http_config, path_of
from tests.stream.streams import MIB, PATIENCE_S, make_source, until
from whimbrel.errors import InvalidPlan
from whimbrel.stream import StreamConfig, StreamServer
from whimbrel.stream.http import connection as http_connection
from whimbrel.stream.http.connection import HttpConnection

SIZE = 24 * MIB + 12_800
OBJECT = 4 * MIB


class Served:
    """A server of ``spot/source.raw`` and its clients."""

    def __init__(self, spot: Path, **more: Any) -> None:
        self.spot = spot
        self.content = make_source(spot / "source.raw", SIZE, share=1.0)
        self.config: StreamConfig = http_config(spot, SIZE, **more)
        self.server = StreamServer(self.config)
        self.clients: list[Client] = []

    @property
    def port(self) -> int:
        assert self.server.http is not None
        return int(self.server.http.port)

    def client(self) -> Client:
        self.clients.append(Client(self.config, self.port))
        return self.clients[-1]

    def http(self) -> Any:
        return self.server.status()["http"]

    def statistics(self) -> Any:
        return self.server.status()["statistics"]

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def hide_source(self) -> None:
        (self.spot / "source.raw").rename(self.spot / "away.raw")

    def show_source(self) -> None:
        (self.spot / "away.raw").rename(self.spot / "source.raw")

    def later(self, client: Client, start: int, length: int) -> Later:
        return Later(lambda: client.read(start, length))


class Later:
    """Something asked for in a thread."""

    def __init__(self, ask: Callable[[], bytes]) -> None:
        self.value: bytes | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], bytes]) -> None:
        self.value = ask()

    def waits(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return self._thread.is_alive()

    def get(self) -> bytes:
        self._thread.join(PATIENCE_S)
        assert self.value is not None
        return self.value


@pytest.fixture
def serve(spot: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(**more: Any) -> Served:
        made.append(Served(spot, **more))
        return made[-1]

    yield make
    for served in made:
        for client in served.clients:
            client.close()
        served.server.stop()


def request(config: StreamConfig, start: int, length: int) -> bytes:
    return f"GET {path_of(config)} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + length - 1}\r\n\r\n".encode()


def test_every_range_on_one_connection_has_the_sources_bytes(serve: Callable[..., Served]) -> None:
    served, rng = serve(), random.Random(3)
    client = served.client()
    status, body, headers = client.ask("HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", str(SIZE))
    for _ in range(60):
        start = rng.randrange(SIZE)
        length = min(rng.choice([1, 512, 4096, 65536, 300_000, OBJECT]), SIZE - start)
        assert client.read(start, length) == served.content[start : start + length]
    assert client.read(SIZE - 12_800, 20_000) == served.content[-12_800:]
    assert client.ask()[1] == served.content
    assert (served.http()["connections"], served.http()["refused"]) == (1, 0)


def test_bad_requests_are_answered_and_end_with_the_connection(serve: Callable[..., Served]) -> None:
    served = serve(background=False)
    client = served.client()
    assert client.ask(Range=f"bytes={SIZE}-")[0] == 416
    assert client.ask("POST")[0] == 405
    status, body, headers = client.ask(path="/guess")
    assert (status, body, headers["connection"]) == (404, b"", "close")
    for junk, code in ((b"\x16\x03\x01\x02\r\n\r\n", b" 400 "), (b"GET /" + b"a" * 40_000, b" 431 ")):
        with served.raw() as sock:
            sock.sendall(junk)
            with contextlib.suppress(ConnectionResetError):
                assert code in sock.recv(200)
                assert sock.recv(200) == b""
    assert served.http()["refused"] == 5
    assert served.server.status()["statistics"]["demand_bytes"] == 0  # type: ignore[index]


def test_the_token_is_nowhere_but_in_its_file(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    served = serve()
    token = path_of(served.config)[1:]
    served.client().read(0, 512)
    served.client().ask(path=f"/{token}x")
    with served.raw() as sock:
        sock.sendall(f"GET /{token} HTTP/1.1\r\nbad header\r\n\r\n".encode())
        sock.recv(100)
    assert token not in str(served.server.status())
    assert token not in served.config.model_dump_json()
    assert token not in caplog.text
    assert (served.spot / "disk.token").stat().st_mode & 0o777 == 0o600


def test_a_token_that_others_may_read_is_refused(spot: Path) -> None:
    make_source(spot / "source.raw", MIB)
    config = http_config(spot, MIB)
    (spot / "disk.token").chmod(0o640)
    with pytest.raises(InvalidPlan, match="others may read"):
        StreamServer(config)
    (spot / "disk.token").chmod(0o600)
    (spot / "disk.token").write_text("short")
    with pytest.raises(InvalidPlan, match="no token"):
        StreamServer(config)


def test_while_the_source_is_away_readers_wait_and_what_is_here_is_served(serve: Callable[..., Served]) -> None:
    served = serve(background=False)
    assert served.client().read(0, 4096) == served.content[:4096]
    served.hide_source()
    served.server.move_source(served.config.source)
    waiting = served.later(served.client(), 8 * MIB, 4096)
    assert waiting.waits(2.0)
    assert served.client().read(0, 4096) == served.content[:4096]
    assert served.client().ask("HEAD")[0] == 200
    gone = served.raw()
    gone.sendall(request(served.config, 12 * MIB, 4096))
    until(lambda: served.http()["connections"] == 5, "all connections")
    gone.close()
    until(lambda: served.http()["connections"] == 4, "end of the one that hung up")
    served.show_source()
    assert waiting.get() == served.content[8 * MIB : 8 * MIB + 4096]


def test_requests_sent_at_once_are_fetched_side_by_side_and_answered_in_order(serve: Callable[..., Served]) -> None:
    served = serve(background=False)
    served.hide_source()
    served.server.move_source(served.config.source)
    places = [20 * MIB, 3 * MIB, 11 * MIB, 0, 17 * MIB]
    with served.raw() as sock:
        for number, start in enumerate(places):
            data = request(served.config, start, 4096)
            sock.sendall(data[:20] if number == 4 else data)
        until(lambda: served.server.store.waiting_chunks == 4, "four chunks that are waited for")
        sock.sendall(request(served.config, places[4], 4096)[20:])
        served.show_source()
        stream = sock.makefile("rb")
        for start in places:
            assert b" 206 " in stream.readline()
            while stream.readline() not in {b"\r\n", b""}:
                pass
            assert stream.read(4096) == served.content[start : start + 4096]


def test_a_copy_is_paused_and_a_guest_is_not(serve: Callable[..., Served]) -> None:
    served = serve(bulk_from=("self",))
    served.server.pause(True)
    copy = served.later(served.client(), 0, OBJECT)
    until(lambda: served.http()["bulk_connections"] == 1, "bulk")
    assert copy.waits(1.0)
    served.server.pause(False)
    assert copy.get() == served.content[:OBJECT]


def test_one_that_only_looks_like_a_copy_is_let_go_in_time(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "PAUSE_HOLD_S", 1.0)  # and nobody says resume: that it ends is the proof
    served = serve(background=False)
    client = served.client()
    for number in range(3):
        assert client.read(number * OBJECT, OBJECT) == served.content[number * OBJECT : (number + 1) * OBJECT]
    began = time.monotonic()
    assert client.read(3 * OBJECT, OBJECT) == served.content[3 * OBJECT : 4 * OBJECT]
    assert time.monotonic() - began > 0.9
    assert served.http()["bulk_connections"] == 1
    assert client.read(22 * MIB, 512) == served.content[22 * MIB : 22 * MIB + 512]
    assert served.http()["bulk_connections"] == 0


def test_bandwidth_limits_copies_alone(serve: Callable[..., Served]) -> None:
    served = serve(bulk_from=())
    until(lambda: served.server.status()["complete"], "all data")
    copy, guest = served.client(), served.client()
    assert guest.read(512, 512) == served.content[512:1024]
    for number in range(4):
        copy.read(number * OBJECT, OBJECT)
    served.server.set_bandwidth(4.0 * MIB)
    began = time.monotonic()
    copy.read(4 * OBJECT, OBJECT)
    assert time.monotonic() - began > 0.7
    served.server.set_bandwidth(1024.0)
    slow = served.later(copy, 5 * OBJECT, OBJECT)
    for _ in range(8):
        assert guest.read(0, OBJECT) == served.content[:OBJECT]
    assert slow.waits(0)
    served.server.set_bandwidth(None)
    assert slow.get() == served.content[5 * OBJECT : 6 * OBJECT]
    # what is counted is what has left, a moment after it could be read
    until(lambda: served.http()["bulk"]["sent_bytes"] == 3 * OBJECT, "the last slice to be counted")
    sent = 512 + 3 * OBJECT + 8 * OBJECT
    until(lambda: served.http()["demand"]["sent_bytes"] == sent, "the last answer to be counted")


def test_copies_are_brought_by_the_background(serve: Callable[..., Served]) -> None:
    served = serve(bulk_from=("self",))
    client = served.client()
    for start in range(0, SIZE, OBJECT):
        length = min(OBJECT, SIZE - start)
        assert client.read(start, length) == served.content[start : start + length]
    least = SIZE - served.content.count(0)
    # A fetch is counted after what waits for it has gone on.
    until(lambda: served.statistics()["background_bytes"] >= least, "the last fetch to be counted")
    statistics = served.statistics()
    assert statistics["demand_bytes"] == 0
    assert statistics["misses"] == 0
    assert served.http()["bulk"]["requests"] == 7


def test_misses_of_guests_are_measured_and_copy_ups_apart(serve: Callable[..., Served]) -> None:
    served = serve(background=False)
    client = served.client()
    for start in (0, 5 * MIB, 5 * MIB):
        client.read(start, 4096)
    client.read(2 * OBJECT, OBJECT)
    statistics: Any = served.server.status()["statistics"]
    assert (statistics["reads"]["hits"], statistics["reads"]["misses"]) == (1, 3)
    assert statistics["miss_latency"]["count"] == 2
    assert served.http()["whole_object_latency"]["count"] == 1


def test_strangers_make_room_for_each_other(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.stream.http.front.MOST_STRANGERS", 3)
    served = serve()
    friend = served.client()
    friend.read(0, 512)
    strangers = [served.raw() for _ in range(6)]
    until(lambda: served.http()["connections"] == 4, "four connections")
    assert friend.read(0, 512) == served.content[:512]
    for sock in strangers:
        sock.close()


def test_a_cache_that_cannot_be_read_is_waited_out(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from whimbrel.errors import Unavailable

    served = serve()
    original, left = served.server.store.read, [3]

    def failing(offset: int, buffer: memoryview) -> None:
        if left[0]:
            left[0] -= 1
            raise Unavailable("the disk of the cache has gone")
        original(offset, buffer)

    monkeypatch.setattr(served.server.store, "read", failing)
    monkeypatch.setattr(http_connection, "RETRY_S", 0.05)
    assert served.client().read(0, 4096) == served.content[:4096]
    assert served.http()["error"] is None


def test_small_answers_leave_at_once(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[HttpConnection] = []
    original = HttpConnection.__init__

    def noted(self: HttpConnection, sock: socket.socket, *words: Any, **more: Any) -> None:
        original(self, sock, *words, **more)
        made.append(self)

    monkeypatch.setattr(HttpConnection, "__init__", noted)
    served = serve()
    served.client().read(0, 512)
    assert made[0]._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "change",
    [
        {"listen": ({"unix_path": "/x"},)},
        {"source_fail_after_s": 5.0},
        {"http": None},
        {"protect": {"mode": "mirror", "shadow": {"kind": "file", "path": "/s", "writable": True}}},
    ],
)
def test_what_does_not_go_with_http_is_refused(spot: Path, change: dict[str, Any]) -> None:
    config = http_config(spot, MIB).model_dump()
    with pytest.raises(ValueError, match="http"):
        StreamConfig.model_validate({**config, **change})
