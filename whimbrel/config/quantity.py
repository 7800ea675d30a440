"""Durations, sizes and rates as people write them: ``90s``, ``1h30m``, ``10GiB``, ``50MB/s``, ``400Mbit/s``.

``MB`` is 10^6 bytes and ``MiB`` 2^20, as in IEC 80000-13. Bits are written ``bit``, never ``b``: a lost capital would
be a factor of eight.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

NUMBER = r"\d+(?:\.\d+)?"
DURATION_UNITS_S = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
SIZE_UNITS_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
BIT_UNITS_BITS = {"bit": 1, "kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
DURATION_PATTERN = rf"^(?:0|(?:{NUMBER}(?:ms|[wdhms]))+)$"
RATE_PATTERN = rf"^{NUMBER} ?(?:{'|'.join([*SIZE_UNITS_BYTES, *BIT_UNITS_BITS])})/s$"

_DURATION_PART = re.compile(rf"({NUMBER})(ms|[wdhms])")
_AMOUNT = re.compile(rf"({NUMBER}) ?([A-Za-z]+)")


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with what to write instead."""
    text = _text(value, "a duration such as 30s, 5m or 2h")
    if text == "0":
        return 0.0
    if re.fullmatch(NUMBER, text):
        raise ValueError(f"needs a unit: write {text}s for seconds, {text}m for minutes")
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"is no duration: {text!r}; write for example 30s, 5m, 1h30m")
    total = Decimal(0)
    for amount, unit in _DURATION_PART.findall(text):
        total += Decimal(amount) * (Decimal("0.001") if unit == "ms" else DURATION_UNITS_S[unit])
    return float(total)


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` reads back as the same number: ``5400`` is ``1h30m``."""
    rest = Decimal(repr(float(seconds)))
    if rest == 0:
        return "0"
    parts = []
    for unit, unit_s in DURATION_UNITS_S.items():
        if unit == "w":
            continue
        whole = rest if unit == "s" else rest // unit_s
        if whole:
            number = f"{whole:f}"
            parts.append(f"{number.rstrip('0').rstrip('.') if '.' in number else number}{unit}")
        rest -= whole * unit_s
    return "".join(parts)


def parse_size(value: object) -> int:
    """Bytes, rounded down. Raises ValueError with what to write instead."""
    text = _text(value, "a size such as 10GiB")
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"is no size: {text!r}; write for example 512MiB, 10GiB")
    unit_bytes = SIZE_UNITS_BYTES.get(found[2])
    if unit_bytes is None:
        raise ValueError(f"has an unknown unit {found[2]!r}; known: {', '.join(SIZE_UNITS_BYTES)}")
    return int(Decimal(found[1]) * unit_bytes)


def format_size(size_bytes: int) -> str:
    """The shortest exact text that ``parse_size`` reads back: ``1073741824`` is ``1GiB``."""
    if size_bytes == 0:
        return "0B"
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if size_bytes % SIZE_UNITS_BYTES[unit] == 0:
            return f"{size_bytes // SIZE_UNITS_BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def parse_rate(value: object) -> float:
    """Bytes per second. Raises ValueError with what to write instead."""
    text = _text(value, "a rate such as 50MB/s or 400Mbit/s")
    amount, slash, per = text.partition("/")
    found = _AMOUNT.fullmatch(amount.strip())
    if found is None or (slash and per.strip() != "s"):
        raise ValueError(f"is no rate: {text!r}; write for example 50MB/s or 400Mbit/s")
    number, unit = Decimal(found[1]), found[2]
    if re.fullmatch(r"[kKMG]?(?:b|bps)", unit):
        raise ValueError(f"is ambiguous: {text!r}; write bits as {unit[:-1].rstrip('bp')}bit/s, bytes as MB/s")
    if not slash:
        raise ValueError(f"needs its time: write {text}/s")
    if unit in SIZE_UNITS_BYTES:
        return float(number * SIZE_UNITS_BYTES[unit])
    if unit in BIT_UNITS_BITS:
        return float(number * BIT_UNITS_BITS[unit] / 8)
    raise ValueError(f"has an unknown unit {unit!r}; known: {', '.join([*SIZE_UNITS_BYTES, *BIT_UNITS_BITS])}, each /s")


def format_rate(bytes_per_s: float) -> str:
    """The shortest exact text that ``parse_rate`` reads back: ``50e6`` is ``50MB/s``."""
    if float(bytes_per_s).is_integer():
        return f"{format_size(int(bytes_per_s))}/s"
    return f"{Decimal(repr(float(bytes_per_s))):f}B/s"


def _text(value: object, wanted: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"should be {wanted}")  # noqa: TRY004 - pydantic collects only ValueError
    try:
        return value.strip() if isinstance(value, str) else f"{Decimal(str(value)):f}"
    except InvalidOperation as error:
        raise ValueError(f"should be {wanted}") from error


DurationS = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"const": 0}], "examples": ["30s", "1h30m"]}
    ),
]
"""Seconds in the model; a duration with its unit in YAML."""

SIZE_PATTERN = rf"^{NUMBER} ?(?:{'|'.join(SIZE_UNITS_BYTES)})$"
Bytes = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": "string", "pattern": SIZE_PATTERN, "examples": ["64MiB", "10GiB"]}),
]
"""Bytes in the model; an amount with its unit in YAML."""

Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    WithJsonSchema({"type": "string", "pattern": RATE_PATTERN, "examples": ["50MB/s", "400Mbit/s"]}),
]
"""Bytes per second in the model; an amount per second in YAML."""
