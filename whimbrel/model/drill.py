"""The record of a rehearsal."""

from __future__ import annotations

from datetime import datetime

from whimbrel.model.endpoint import Frozen
from whimbrel.model.stream import StreamFigures


class DrillRecord(Frozen):
    """What one drill of a VM showed."""

    plan: str
    vm: str
    ref: str
    """The VM's ref in its cloud."""
    source: str
    target: str
    migration: str
    passed: bool
    why: str = ""
    """Why it did not pass."""
    frozen_at: datetime | None = None
    """The point in time that was rehearsed."""
    started_at: datetime | None = None
    answered_at: datetime | None = None
    """When all checks had passed."""
    ended_at: datetime
    checks: tuple[str, ...] = ()
    figures: StreamFigures | None = None
    from_copy: bool = False
    """Read from what a running migration had copied, not from the source."""
    copied: bool = False
    """All data was copied before the boot; nothing was streamed."""
    hydrated: bool = False
    compared: bool = False

    @property
    def boot_s(self) -> float | None:
        """From the start until all checks had passed."""
        if self.started_at is None or self.answered_at is None:
            return None
        return (self.answered_at - self.started_at).total_seconds()
