"""Axes: values land where they belong, and ticks are few, even and wide enough."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.report.scale import Scale, linear_ticks, log_ticks, time_ticks


def test_linear_scale() -> None:
    scale = Scale(0, 10, 100, 200)
    assert [scale(0), scale(5), scale(10)] == [100, 150, 200]
    assert [scale(-3), scale(99)] == [100, 200]


def test_log_scale() -> None:
    scale = Scale(1, 1024, 0, 100, log=True)
    assert [scale(1), scale(32), scale(1024), scale(0)] == [0, 50, 100, 0]


def test_scale_without_extent() -> None:
    assert Scale(5, 5, 10, 90)(5) == 10


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (10.0, [0, 2, 4, 6, 8, 10]),
        (31.0, [0, 10, 20, 30, 40]),
        (0.4, [0, 0.1, 0.2, 0.3, 0.4]),
        (0.0, [0, 1]),
        (5e-324, [0, 1]),
        (float("inf"), [0, 1]),
    ],
)
def test_linear_ticks(high: float, ticks: list[float]) -> None:
    assert linear_ticks(high) == pytest.approx(ticks)


def test_binary_ticks_are_whole_units() -> None:
    assert [tick / (1 << 20) for tick in linear_ticks(125 * (1 << 20), binary=True)] == [0, 50, 100, 150]


@given(st.floats(min_value=1e-6, max_value=1e30), st.booleans())
def test_linear_ticks_reach_the_value_and_are_few(high: float, binary: bool) -> None:
    ticks = linear_ticks(high, binary=binary)
    assert ticks[0] == 0
    assert ticks[-1] >= high * (1 - 1e-6)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)


@given(st.floats(min_value=0.5, max_value=1e12), st.floats(min_value=1, max_value=1e12))
def test_log_ticks_hold_the_range_and_are_few(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low
    assert ticks[-1] >= low * ratio * (1 - 1e-9)
    assert 2 <= len(ticks) <= 9
    assert len({right / left for left, right in pairwise(ticks)}) == 1


@pytest.mark.parametrize(("span_s", "ticks"), [(0.5, [0]), (60, [0, 10, 20, 30, 40, 50, 60]), (200, [0, 60, 120, 180])])
def test_time_ticks(span_s: float, ticks: list[float]) -> None:
    assert time_ticks(span_s) == ticks


@given(st.floats(min_value=0, max_value=1e12))
def test_time_ticks_are_within_the_span_and_bounded(span_s: float) -> None:
    ticks = time_ticks(span_s)
    assert 1 <= len(ticks) <= 61
    assert ticks[-1] <= span_s
