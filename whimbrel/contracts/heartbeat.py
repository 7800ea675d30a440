"""What a copy tells while it runs: heartbeat details, read by ``watch`` from the pending activity."""

from __future__ import annotations

from typing import Literal

from whimbrel.model.endpoint import Frozen
from whimbrel.model.stream import StreamFigures

Stage = Literal["opening", "scanning", "copying", "checking", "comparing", "hydrating"]


class CopyBeat(Frozen):
    """One heartbeat. A hint for people; correctness rests on the manifest, never on this."""

    disk: str
    stage: Stage = "opening"
    done_bytes: int = 0
    total_bytes: int = 0
    sent_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None
    stream: StreamFigures | None = None
    """Of a hydration."""


class CopyMark(Frozen):
    """A signal at every tenth of a long copy, so that percent is searchable without reading heartbeats."""

    disk: str
    percent: int
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None


class StreamMark(Frozen):
    """A signal when something about a stream changed that an operator should see."""

    figures: StreamFigures
    slow: bool = False
    """Misses wait longer than the plan allows; the background yields meanwhile."""


STREAM_MARK_SIGNAL = "stream_marked"
COPY_MARK_SIGNAL = "copy_marked"
