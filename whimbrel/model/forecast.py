"""The forecast: how long would the outage be if we cut over now, and do rounds converge at all.

All figures are estimates from what was measured so far; each is kept and scored against what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from whimbrel.model.endpoint import Frozen

ROUND_OVERHEAD_S = 1.5
"""Opening and closing a point in time costs about this however little has changed."""


class RoundRecord(Frozen):
    """One finished round; the baseline is round 0."""

    number: int
    kind: Literal["baseline", "delta", "full-compare", "final"]
    started_at: datetime
    taken_at: datetime
    """When the point in time was taken."""
    elapsed_s: float
    changed_bytes: int
    sent_bytes: int
    zeroed_bytes: int = 0
    read_bytes: int = 0
    digest: str = ""
    rate_bytes_per_s: float = 0.0
    lied_blocks: int = 0
    """Blocks that tracking called unchanged and a sample found changed; they were copied."""
    by_hash: bool = False
    """Digests told what to send, not the source's tracking."""


class Forecast(Frozen):
    """Estimates at one moment."""

    made_at: datetime
    stop_s: float
    delta_bytes: float
    delta_s: float
    boot_s: float
    outage_s: float
    """If cut over now: stop + final delta + boot."""
    converges: bool | None
    """None before two rounds are known."""
    dirty_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None


class Score(Frozen):
    """A forecast held against the outcome."""

    forecast_outage_s: float
    actual_outage_s: float

    @property
    def error_ratio(self) -> float:
        """(forecast - actual) / actual; 0 is perfect, negative was too hopeful."""
        if self.actual_outage_s <= 0:
            return 0.0
        return (self.forecast_outage_s - self.actual_outage_s) / self.actual_outage_s


def link_rate(rounds: Sequence[RoundRecord]) -> float | None:
    """Bytes per second the path carried: the newest round that moved enough to tell, else the largest seen."""
    telling = [r for r in rounds if r.sent_bytes >= 4 << 20 and r.rate_bytes_per_s > 0]
    if telling:
        return telling[-1].rate_bytes_per_s
    return max((r.rate_bytes_per_s for r in rounds if r.rate_bytes_per_s > 0), default=None)


def dirty_rate(rounds: Sequence[RoundRecord]) -> float | None:
    """Bytes per second of newly touched blocks: the last delta over the time between the two points in time."""
    deltas = [r for r in rounds if r.kind != "baseline"]
    if not deltas:
        return None
    last = deltas[-1]
    before = next((r for r in reversed(rounds) if r.number == last.number - 1), None)
    if before is None:
        return None
    span_s = (last.taken_at - before.taken_at).total_seconds()
    return last.changed_bytes / span_s if span_s > 0 else None


def converging(rounds: Sequence[RoundRecord], shrink_ratio: float) -> bool | None:
    """Whether the last delta was smaller than ``shrink_ratio`` of the one before it, or negligible; None if unknown."""
    deltas = [r for r in rounds if r.kind in {"delta", "full-compare"}]
    if len(deltas) < 2:
        rate, dirty = link_rate(rounds), dirty_rate(rounds)
        return None if rate is None or dirty is None else dirty < rate * shrink_ratio
    return deltas[-1].changed_bytes <= deltas[-2].changed_bytes * shrink_ratio


def forecast(
    rounds: Sequence[RoundRecord],
    *,
    now: datetime,
    shrink_ratio: float,
    stop_s: float,
    boot_s: float,
    dirty_hint: float | None = None,
    link_hint: float | None = None,
    data_bytes: int | None = None,
    streamed: bool = False,
) -> Forecast | None:
    """The forecast after the rounds so far; None when nothing is known yet.

    Before any delta the ``hint`` figures (measured by the precheck) stand in; a delta cannot exceed ``data_bytes``.
    """
    rate = link_rate(rounds) or link_hint
    dirty = dirty_rate(rounds)
    if dirty is None:
        dirty = dirty_hint
    if rate is None or dirty is None:
        return None
    since_s = max((now - rounds[-1].taken_at).total_seconds(), 0.0) if rounds else 0.0
    delta_bytes = dirty * (since_s + stop_s)
    if data_bytes is not None:
        delta_bytes = min(delta_bytes, float(data_bytes))
    # What is streamed arrives while the guest runs.
    delta_s = (0.0 if streamed else delta_bytes / rate) + ROUND_OVERHEAD_S
    return Forecast(
        made_at=now,
        stop_s=stop_s,
        delta_bytes=delta_bytes,
        delta_s=delta_s,
        boot_s=boot_s,
        outage_s=stop_s + delta_s + boot_s,
        converges=converging(rounds, shrink_ratio),
        dirty_bytes_per_s=dirty,
        link_bytes_per_s=rate,
    )


def next_interval_s(last_round_s: float, min_interval_s: float, max_interval_s: float) -> float:
    """Pause before the next round: as long as the last one took, within the plan's bounds.

    So a slow link is busy at most half of the time, and small rounds follow each other closely.
    """
    return min(max(last_round_s, min_interval_s), max_interval_s)
