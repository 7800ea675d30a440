"""Latency of the last seconds, beside that of all time."""

from __future__ import annotations

from whimbrel.stream.latency import RECENT_S, Latency


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_old_events_are_forgotten_by_the_recent_figure_only() -> None:
    clock = Clock()
    latency = Latency(clock)
    for _ in range(100):
        latency.note(0.5)
    assert (latency.recent_s(0.99) or 0) > 0.4
    clock.now += RECENT_S
    for _ in range(100):
        latency.note(0.001)
    assert (latency.recent_s(0.99) or 0) > 0.4  # the window before still counts
    assert (latency.recent_s(0.25) or 1) < 0.01
    clock.now += RECENT_S
    latency.note(0.001)
    assert (latency.recent_s(0.99) or 1) < 0.01
    assert (latency.quantile_s(0.9) or 0) > 0.4
    clock.now += 3 * RECENT_S
    assert latency.recent_s(0.99) is None
    assert latency.count == 201


def test_events_of_a_window_long_ago_do_not_come_back() -> None:
    clock = Clock()
    latency = Latency(clock)
    latency.note(0.5)
    clock.now += 2.5 * RECENT_S
    latency.note(0.001)
    assert (latency.recent_s(0.99) or 1) < 0.01
