"""Axes: where values lie on a plot, and which values are worth a tick."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TIME_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200),
    *(86400, 2 * 86400, 7 * 86400, 14 * 86400, 28 * 86400, 91 * 86400, 365 * 86400),
)

MIN_TICKED = 1e-9
"""Below it (a nanosecond, a part of a byte) a value is as good as nothing, and steps would run out of digits."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low..high`` to ``start..stop`` pixels; ``log`` by logarithm, values at or below ``low`` at ``start``."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value, kept within the axis."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log2(low), math.log2(high), math.log2(at)
        share = (at - low) / (high - low) if high > low else 0.0
        return round(self.start + share * (self.stop - self.start), 2)


def linear_ticks(high: float, *, binary: bool = False, most: int = 5) -> list[float]:
    """Ticks from 0 that reach ``high``: steps of 1, 2 or 5 times a power of ten, in units of 1024^n when ``binary``."""
    if not MIN_TICKED < high < math.inf:
        return [0.0, 1.0]
    unit = 1024.0 ** max(math.floor(math.log(high, 1024)), 0) if binary else 1.0
    rough = high / unit / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999) * unit
    return [index * step for index in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float, *, most: int = 7) -> list[float]:
    """Powers of two from at or below ``low`` to at or above ``high``, evenly spaced by their exponents."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = max(math.ceil((last - first) / most), 1)
    last = first + math.ceil((last - first) / step) * step
    return [2.0**exponent for exponent in range(first, max(last, first + step) + 1, step)]


def time_ticks(span_s: float, *, most: int = 6) -> list[float]:
    """Seconds from 0 up to ``span_s`` in steps that clocks have."""
    step = next((one for one in _TIME_STEPS_S if span_s / one <= most), _TIME_STEPS_S[-1])
    return [float(index * step) for index in range(min(math.floor(span_s / step), 60) + 1)]
