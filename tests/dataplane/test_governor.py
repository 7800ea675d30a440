"""The governor with a clock of our own: rates, limits that change, and who goes first."""

from __future__ import annotations

import threading
import time

import pytest

from whimbrel.dataplane.governor import Governor, Priority, Share

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def contend(clock: Clock, shares: list[Share], seconds: float, request: int = 64 << 10) -> list[int]:
    """All shares ask as often as they may, in steps of 1 ms; bytes that each got."""
    got = [0] * len(shares)
    for _ in range(int(seconds * 1000)):
        for at, share in enumerate(shares):
            while share.reserve(request) == 0:
                got[at] += request
        clock.now += 0.001
    return got


def test_host_limit_holds_over_all_copies() -> None:
    clock = Clock()
    governor = Governor(10 * MIB, clock=clock)
    got = contend(clock, [governor.share(Priority.BASELINE) for _ in range(3)], 10)
    assert sum(got) == pytest.approx(100 * MIB, rel=0.05)


def test_own_limit_holds_without_host_limit() -> None:
    clock = Clock()
    limited, free = Governor(clock=clock).share(Priority.DELTA, 2 * MIB), None
    assert contend(clock, [limited], 10)[0] == pytest.approx(20 * MIB, rel=0.05)
    assert free is None


def test_no_limit_never_waits() -> None:
    share = Governor(clock=Clock()).share(Priority.HYDRATION)
    assert all(share.reserve(1 << 30) == 0 for _ in range(100))


def test_higher_class_leaves_only_the_floor() -> None:
    clock = Clock()
    governor = Governor(100 * MIB, clock=clock)
    final, base = governor.share(Priority.FINAL_DELTA), governor.share(Priority.BASELINE)
    got = contend(clock, [base, final], 10)
    assert got[0] == pytest.approx(50 * MIB, rel=0.15)
    assert got[1] == pytest.approx(950 * MIB, rel=0.05)


def test_lower_class_gets_all_again_when_the_higher_one_is_done() -> None:
    clock = Clock()
    governor = Governor(100 * MIB, clock=clock)
    final, base = governor.share(Priority.FINAL_DELTA), governor.share(Priority.BASELINE)
    contend(clock, [base, final], 2)
    contend(clock, [base], 1)
    assert contend(clock, [base], 5)[0] == pytest.approx(500 * MIB, rel=0.05)


def test_higher_class_that_asks_for_little_takes_little() -> None:
    clock = Clock()
    governor = Governor(100 * MIB, clock=clock)
    delta, base = governor.share(Priority.DELTA, 10 * MIB), governor.share(Priority.BASELINE, 50 * MIB)
    got = contend(clock, [delta, base], 10)
    assert got[0] == pytest.approx(100 * MIB, rel=0.05)
    assert got[1] == pytest.approx(500 * MIB, rel=0.05)


def test_equal_classes_both_move() -> None:
    clock = Clock()
    governor = Governor(100 * MIB, clock=clock)
    got = contend(clock, [governor.share(Priority.DELTA), governor.share(Priority.DELTA)], 10)
    assert sum(got) == pytest.approx(1000 * MIB, rel=0.05)


def test_limits_change_while_running() -> None:
    clock = Clock()
    governor = Governor(100 * MIB, clock=clock)
    share = governor.share(Priority.BASELINE)
    contend(clock, [share], 1)
    governor.set_host_limit(MIB)
    contend(clock, [share], 1)
    assert contend(clock, [share], 10)[0] == pytest.approx(10 * MIB, rel=0.1)
    governor.set_host_limit(None)
    assert share.reserve(1 << 30) == 0
    share.set_limit(MIB)
    assert share.reserve(MIB) == 0
    assert share.reserve(MIB) == pytest.approx(1.0)


def test_request_larger_than_a_second_of_tokens_passes_and_is_paid_back() -> None:
    clock = Clock()
    share = Governor(MIB, clock=clock).share(Priority.BASELINE)
    assert share.reserve(8 * MIB) == 0
    assert share.reserve(1) == pytest.approx(8.0)
    clock.now += 8.01
    assert share.reserve(1) == 0


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Governor(0)
    with pytest.raises(ValueError, match="positive"):
        Governor().set_host_limit(-1)
    with pytest.raises(ValueError, match="positive"):
        Governor().share(Priority.MISS, 0)


def test_take_ends_when_asked_to_stop_or_when_the_limit_is_lifted() -> None:
    governor = Governor(1.0)
    share = governor.share(Priority.BASELINE)
    assert share.take(1000, lambda: False)
    stop_at = time.monotonic() + 0.2
    assert not share.take(1, lambda: time.monotonic() > stop_at)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(share.take(1, lambda: False)))
    waiter.start()
    governor.set_host_limit(None)
    waiter.join(30)
    assert results == [True]
