"""Figures as operators read them: bytes, rates and durations with their units, three significant digits."""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def _digits(value: float) -> str:
    """``value`` (below 1024) with at most one decimal that says something."""
    text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return text.removesuffix(".0")


def bytes_text(count: float) -> str:
    """``1536`` -> ``1.5 KiB``; binary units, as disk sizes are given."""
    if not math.isfinite(count):
        return "unknown"
    value, unit = abs(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{'-' if count < 0 else ''}{_digits(value)} {_UNITS[unit]}"


def rate_text(bytes_per_s: float) -> str:
    """Bytes per second as ``120 MiB/s``."""
    return f"{bytes_text(bytes_per_s)}/s"


def duration_text(seconds: float) -> str:
    """``4000`` -> ``1 h 7 min``; the two largest units that matter, milliseconds below a second."""
    if not math.isfinite(seconds):
        return "without end"
    sign, left = ("-" if seconds < 0 else ""), abs(seconds)
    if left < 0.9995:
        return f"{sign}{left * 1000:.0f} ms" if left else "0 s"
    if left < 59.95:
        return f"{sign}{_digits(left)} s"
    whole = round(left)
    if whole < 3600:
        return f"{sign}{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(left / 60)
    if minutes < 24 * 60:
        return f"{sign}{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    hours = round(left / 3600)
    return f"{sign}{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")
