"""Calls at once, calls per second, and pauses: for all threads of a worker together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.openstack import pace as module
from drivers.openstack.errors import asks_for_pause
from drivers.openstack.pace import Pace, PacedAdapter
from whimbrel.errors import Throttled


class Time:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@settings(deadline=None)
@given(per_s=st.floats(min_value=0.5, max_value=50), gaps=st.lists(st.floats(min_value=0, max_value=1), max_size=40))
def test_calls_begin_no_more_often_than_allowed(per_s: float, gaps: list[float]) -> None:
    watch, begun = Time(), []
    pace = Pace(per_s=per_s, clock=watch.clock, sleep=watch.sleep)
    for gap in gaps:
        watch.now += gap
        with pace.turn("nova"):
            begun.append(watch.now)
    assert all(later - earlier >= 1 / per_s - 1e-6 for earlier, later in pairwise(begun))


def test_no_more_calls_at_once_than_allowed() -> None:
    pace, lock, three = Pace(at_once=3), threading.Lock(), threading.Event()
    running, most = 0, 0

    def call() -> None:
        nonlocal running, most
        for _ in range(5):
            with pace.turn("nova"):
                with lock:
                    running += 1
                    most = max(most, running)
                    if running == 3:
                        three.set()
                # The first ones stay until they are three; a fourth would come while they rest.
                assert three.wait(60)
                time.sleep(0.005)
                with lock:
                    running -= 1

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_a_turn_that_does_not_come_is_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    pace = Pace(at_once=1)
    with pace.turn("nova"), pytest.raises(Throttled, match="under way") as raised, pace.turn("cinder"):
        pass
    assert "max_concurrent_calls" in raised.value.action
    with pace.turn("nova"):
        pass  # the slot is free again


def test_a_queue_that_is_too_long_is_throttled_and_takes_no_turn() -> None:
    watch = Time()
    slept: list[float] = []
    pace = Pace(per_s=0.1, clock=watch.clock, sleep=slept.append)  # time stands still: others wait
    for _ in range(3):
        with pace.turn("nova"):
            pass
    assert slept == [10.0, 20.0]
    for _ in range(2):
        with pytest.raises(Throttled, match="calls_per_s") as raised, pace.turn("nova"):
            pass
        assert raised.value.retry_after_s == pytest.approx(30.0)


def test_a_pause_holds_for_its_service_and_is_not_shortened() -> None:
    watch = Time()
    pace = Pace(clock=watch.clock, sleep=watch.sleep)
    pace.rest("nova", 30.0)
    pace.rest("nova", 3.0)
    watch.now += 10
    with pytest.raises(Throttled, match="20 s of it are left") as raised, pace.turn("nova"):
        pass
    assert raised.value.retry_after_s == pytest.approx(20.0)
    with pace.turn("cinder"):
        pass
    watch.now += 19.5
    with pace.turn("nova"):
        assert watch.now == pytest.approx(130.0), "the short rest was slept through"


@pytest.mark.parametrize(
    ("status", "headers", "asks"),
    [
        (429, {}, True),
        (429, {"Retry-After": "0"}, True),
        (503, {"Retry-After": "9"}, True),
        (503, {}, False),
        (413, {"Retry-After": "9"}, True),
        (413, {"Retry-After": "0"}, False),
        (413, {}, False),
        (403, {"Retry-After": "9"}, False),
        (200, {"Retry-After": "9"}, False),
    ],
)
def test_which_answers_ask_for_a_pause(status: int, headers: dict[str, str], asks: bool) -> None:
    assert asks_for_pause(status, headers) is asks


class _Busy(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(429)
        self.send_header("Retry-After", "60")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def busy() -> Iterator[tuple[str, type[_Busy]]]:
    handler = type("Busy", (_Busy,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_after_a_pause_was_asked_for_nothing_is_sent(busy: tuple[str, type[_Busy]]) -> None:
    url, handler = busy
    with requests.Session() as session:
        session.mount("http://", PacedAdapter(Pace()))
        assert session.get(url).status_code == 429
        with pytest.raises(Throttled):
            session.get(url)
    assert handler.asked == 1
