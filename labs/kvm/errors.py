"""What the lab says when it cannot do its part."""

from __future__ import annotations

from pathlib import Path

LOG_TAIL_CHARS = 1500


class LabError(Exception):
    """The lab could not do what was asked; the message says what to look at."""


def with_log(message: str, log: Path) -> LabError:
    """Return a LabError that names ``log`` and ends with its last lines."""
    try:
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip()
    except OSError:
        tail = "(no such file)"
    return LabError(f"{message}; log: {log}\n{tail}")
