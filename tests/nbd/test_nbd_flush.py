"""Flush of a device whose server does, or does not, promise that one connection's flush covers all."""

from __future__ import annotations

import threading

import pytest

from tests.nbd.conftest import Serve
from tests.nbd.scripted_server import ALL_FLAGS, FLUSH, MULTI_CONN, Asked, Offer, Script, Session
from whimbrel.errors import Unavailable
from whimbrel.nbd import NbdLane, open_nbd

LONELY = Offer(flags=ALL_FLAGS & ~MULTI_CONN)
DATA = memoryview(bytes(512))


class Recorder:
    """Acknowledges everything and notes which connection was flushed; may hang up on a request."""

    def __init__(self) -> None:
        self.flushed: list[str] = []

    def script(self, name: str, *, dies_at: int | None = None) -> Script:
        def run(session: Session) -> None:
            while True:
                asked: Asked = session.request()
                if asked.offset == dies_at:
                    raise EOFError
                if asked.command == FLUSH:
                    self.flushed.append(name)
                session.simple(asked.cookie)

        return run


def write(lane: NbdLane, offset: int = 0) -> None:
    lane.submit_write(offset, DATA)
    lane.reap()


def test_with_the_promise_one_flush_is_enough(serve: Serve) -> None:
    seen = Recorder()
    device = open_nbd(serve(seen.script("status"), seen.script("a"), seen.script("b")))
    a, b = device.lane(), device.lane()
    write(a)
    write(b)
    a.flush()
    assert seen.flushed == ["a"]
    device.close()
    assert seen.flushed == ["a"]


def test_without_it_every_lane_that_wrote_is_flushed(serve: Serve) -> None:
    seen = Recorder()
    names = ("status", "a", "b", "c")
    device = open_nbd(serve(*map(seen.script, names), offer=LONELY))
    a, b, _ = device.lane(), device.lane(), device.lane()
    write(a)
    write(b)
    a.flush()
    assert sorted(seen.flushed) == ["a", "b"]
    seen.flushed.clear()
    b.flush()
    assert seen.flushed == ["b"]
    device.close()


def test_a_lane_flushes_before_it_closes(serve: Serve) -> None:
    seen = Recorder()
    device = open_nbd(serve(*map(seen.script, ("status", "a", "b")), offer=LONELY))
    a, b = device.lane(), device.lane()
    write(a)
    a.close()
    assert seen.flushed == ["a"]
    b.flush()
    assert seen.flushed == ["a", "b"]
    device.close()


def test_writes_lost_with_their_connection_are_not_called_flushed(serve: Serve) -> None:
    seen = Recorder()
    device = open_nbd(serve(seen.script("status"), seen.script("a", dies_at=512), seen.script("b"), offer=LONELY))
    a, b = device.lane(), device.lane()
    write(a)
    with pytest.raises(Unavailable):
        write(a, 512)
    with pytest.raises(Unavailable):
        b.flush()
    a.close()
    with pytest.raises(Unavailable, match="no flush has covered"):
        b.flush()
    device.close()


def test_the_flush_of_a_busy_neighbour_keeps_its_completions(serve: Serve) -> None:
    seen = Recorder()
    device = open_nbd(serve(*map(seen.script, ("status", "a", "b")), offer=LONELY))
    a, b = device.lane(), device.lane()
    cookies = {b.submit_write(index * 512, DATA) for index in range(20)}
    a.flush()
    assert sorted(seen.flushed) == ["a", "b"]
    assert {b.reap().cookie for _ in range(20)} == cookies
    # The flush overtook these writes on their way: it does not count for them.
    seen.flushed.clear()
    a.flush()
    assert sorted(seen.flushed) == ["a", "b"]
    device.close()


def test_flushes_while_other_threads_write(serve: Serve) -> None:
    seen = Recorder()
    device = open_nbd(serve(*map(seen.script, ("status", "a", "b", "c")), offer=LONELY))
    lanes = [device.lane() for _ in range(3)]
    failures: list[BaseException] = []

    def work(lane: NbdLane) -> None:
        try:
            for round_ in range(100):
                write(lane, round_ * 512)
                if round_ % 10 == 0:
                    lane.flush()
        except BaseException as failed:
            failures.append(failed)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    device.close()
