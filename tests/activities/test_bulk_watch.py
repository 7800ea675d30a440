"""The watch over a long transfer: cancelled, shut down, stalled; heartbeats and marks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from temporalio import activity
from temporalio.exceptions import CancelledError
from temporalio.testing import ActivityEnvironment

from activities import bulk
from activities.bulk import BulkWatch
from whimbrel.contracts.heartbeat import CopyBeat, CopyMark
from whimbrel.errors import Unavailable

PATIENCE_S = 90.0


def _until(fits: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fits():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def environment() -> ActivityEnvironment:
    return ActivityEnvironment()


def _transfer(*, no_progress_s: float = 60.0, began: threading.Event | None = None) -> None:
    with BulkWatch("vda", no_progress_s=no_progress_s) as watch:
        if began is not None:
            began.set()
        _until(watch.should_stop)
        watch.raise_stopped()


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
def test_an_end_from_outside(environment: ActivityEnvironment, how: str) -> None:
    """A cancellation is one; a shutdown of the worker is a retryable error, so that another worker goes on."""
    began = threading.Event()

    def interrupt() -> None:
        began.wait(PATIENCE_S)
        environment.cancel() if how == "cancel" else environment.worker_shutdown()

    @activity.defn(name="transfer", no_thread_cancel_exception=True)
    def transfer() -> None:
        _transfer(began=began)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(CancelledError if how == "cancel" else Unavailable, match="vda"):
        environment.run(transfer)
    thread.join()


def test_a_transfer_that_stands_still_fails_its_attempt(environment: ActivityEnvironment) -> None:
    with pytest.raises(Unavailable, match="no byte of vda moved"):
        environment.run(lambda: _transfer(no_progress_s=0.3))


class Clock:
    """Stands still until the test moves it, and knows that it was looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return self.now

    def seen_twice(self) -> None:
        """Wait for a whole turn of who looks at it."""
        wanted = self._looks + 2
        _until(lambda: self._looks >= wanted)


def test_movement_keeps_it_alive(environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is not dead: a byte now and then is enough, by the clock of the watch."""
    clock = Clock()
    monkeypatch.setattr(bulk, "time", clock)
    monkeypatch.setattr(bulk, "POLL_S", 0.01)

    def transfer() -> bool:
        with BulkWatch("vda", no_progress_s=1.5) as watch:
            for done in range(1, 12):
                watch.moved(done=done, total=100)
                clock.now += 1.4
                clock.seen_twice()
            alive = not watch.should_stop()
            clock.now += 0.2
            _until(watch.should_stop)
            return alive

    assert environment.run(transfer)


def test_heartbeats_and_marks(environment: ActivityEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats tell where it stands; a mark is sent at every tenth, not at every byte."""
    monkeypatch.setattr(bulk, "BEAT_S", 0.1)
    monkeypatch.setattr(bulk, "POLL_S", 0.02)
    monkeypatch.setattr(bulk, "MARK_MIN_S", 0.0)
    beats: list[CopyBeat] = []
    marks: list[CopyMark] = []
    environment.on_heartbeat = beats.append

    def transfer() -> None:
        with BulkWatch("vda", no_progress_s=60.0, notify=lambda _w, _r, mark: marks.append(mark)) as watch:
            watch.stage("copying")
            for done in (5, 8, 25, 26, 90):
                seen = len(beats)
                watch.moved(done=done, total=100, sent=done, rate_bytes_per_s=7.0, eta_s=1.0)
                _until(lambda seen=seen: len(beats) >= seen + 2)  # type: ignore[misc]

    environment.run(transfer)
    assert beats[0].stage == "opening"
    assert (beats[-1].stage, beats[-1].done_bytes, beats[-1].rate_bytes_per_s) == ("copying", 90, 7.0)
    assert [mark.percent for mark in marks] == [25, 90]
    assert marks[0].disk == "vda"


def test_the_thread_ends_with_the_transfer(environment: ActivityEnvironment) -> None:
    def transfer() -> None:
        with BulkWatch("watched-disk", no_progress_s=60.0):
            pass

    environment.run(transfer)
    assert "watch-watched-disk" not in {thread.name for thread in threading.enumerate()}
