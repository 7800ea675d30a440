"""Durations, sizes and rates: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.config.quantity import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("2w", 1209600), ("250ms", 0.25),
     ("1.5h", 5400), ("0", 0), (0, 0), ("0s", 0), (" 10s ", 10)],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (60, "needs a unit: write 60s for seconds, 60m for minutes"),
        ("60", "needs a unit: write 60s for seconds, 60m for minutes"),
        (1.5, "needs a unit: write 1.5s for seconds, 1.5m for minutes"),
        ("5 minutes", "is no duration: '5 minutes'; write for example 30s, 5m, 1h30m"),
        ("-5m", "is no duration: '-5m'; write for example 30s, 5m, 1h30m"),
        ("", "is no duration: ''; write for example 30s, 5m, 1h30m"),
        (True, "should be a duration such as 30s, 5m or 2h"),
        (None, "should be a duration such as 30s, 5m or 2h"),
        (["5m"], "should be a duration such as 30s, 5m or 2h"),
    ],
)
def test_bad_durations(text: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("50MB/s", 50e6), ("50 MB/s", 50e6), ("1MiB/s", 1 << 20), ("400Mbit/s", 50e6), ("1Gbit/s", 125e6),
     ("8bit/s", 1), ("1.5kB/s", 1500), ("100KB/s", 100e3), ("9 kbit/s", 1125)],
)  # fmt: skip
def test_rates(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


UNITS = "B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB, bit, kbit, Mbit, Gbit, each /s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50MB", "needs its time: write 50MB/s"),
        ("50Mb/s", "is ambiguous: '50Mb/s'; write bits as Mbit/s, bytes as MB/s"),
        ("50Mbps", "is ambiguous: '50Mbps'; write bits as Mbit/s, bytes as MB/s"),
        ("50MB/h", "is no rate: '50MB/h'; write for example 50MB/s or 400Mbit/s"),
        ("fast", "is no rate: 'fast'; write for example 50MB/s or 400Mbit/s"),
        (50, "is no rate: '50'; write for example 50MB/s or 400Mbit/s"),
        ("5XB/s", "has an unknown unit 'XB'; known: " + UNITS),
    ],
)  # fmt: skip
def test_bad_rates(text: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rate(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "size"), [("10GiB", 10 << 30), ("1 TB", 10**12), ("1.5KiB", 1536), ("0B", 0)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["10", "10Gi", "GiB", "-1B", 7, None])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_whole_seconds_survive_writing(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(min_value=0, max_value=1e9, allow_nan=False))
def test_any_duration_survives_writing(seconds: float) -> None:
    assert math.isclose(parse_duration(format_duration(seconds)), seconds, rel_tol=1e-12, abs_tol=1e-300)


@given(st.integers(min_value=0, max_value=1 << 62))
def test_sizes_survive_writing(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.one_of(st.integers(min_value=1, max_value=1 << 50), st.floats(min_value=0.001, max_value=1e15)))
def test_rates_survive_writing(rate: float) -> None:
    assert parse_rate(format_rate(rate)) == rate


@given(st.integers(min_value=1, max_value=10**6), st.sampled_from(["", "k", "M", "G"]))
def test_eight_bits_are_a_byte(amount: int, prefix: str) -> None:
    assert parse_rate(f"{amount * 8}{prefix}bit/s") == parse_rate(f"{amount}{prefix}B/s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5400, "1h30m"), (60, "1m"), (0, "0"), (0.25, "0.25s"), (86400, "1d"), (90061.5, "1d1h1m1.5s")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(50e6, "50MB/s"), (1 << 20, "1MiB/s"), (1, "1B/s"), (1.5, "1.5B/s")])
def test_rates_are_written_short(rate: float, text: str) -> None:
    assert format_rate(rate) == text
