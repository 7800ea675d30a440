"""Bytes, rates and durations as operators read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.model.figures import bytes_text, duration_text, rate_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1 KiB"),
        (1536, "1.5 KiB"),
        (150 << 20, "150 MiB"),
        (1 << 40, "1 TiB"),
        (-2048, "-2 KiB"),
        (float("nan"), "unknown"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_rate() -> None:
    assert rate_text(120.4 * (1 << 20)) == "120 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0021, "2 ms"),
        (0.9999, "1 s"),
        (1.5, "1.5 s"),
        (59.97, "1 min"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3599.6, "1 h"),
        (4020, "1 h 7 min"),
        (86399, "1 d"),
        (86400 * 2 + 3600 * 5, "2 d 5 h"),
        (-90, "-1 min 30 s"),
        (float("inf"), "without end"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(min_value=0, max_value=1e15))
def test_texts_are_short_for_any_figure(value: float) -> None:
    assert len(duration_text(value)) <= 18
    assert len(bytes_text(value)) <= 10
