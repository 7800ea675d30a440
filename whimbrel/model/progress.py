"""What a migration is doing, for the operator: phases, steps, and the figures beside them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from whimbrel.model.drill import DrillRecord
from whimbrel.model.endpoint import Frozen
from whimbrel.model.forecast import Forecast, RoundRecord, Score
from whimbrel.model.ledger import Ledger
from whimbrel.model.stream import StreamFigures


class Phase(StrEnum):
    """Where a migration stands. Names are shown to operators and stored as a search attribute."""

    PRECHECK = "precheck"
    PREPARE = "prepare"
    BASELINE = "baseline"
    ROUNDS = "rounds"
    CUTOVER = "cutover"
    HYDRATE = "hydrate"
    """The target runs, and its data is arriving."""
    REBUILD = "rebuild"
    VERIFY = "verify"
    CONFIRM = "confirm"
    COMMIT = "commit"
    ATTENTION = "attention"
    """Something failed that retries cannot mend; nothing is lost; the operator decides."""
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    """The precheck found a blocking reason; nothing was touched."""


TERMINAL = frozenset({Phase.COMPLETED, Phase.ROLLED_BACK, Phase.REFUSED})


class StepRecord(Frozen):
    """One step of the migration as it ran."""

    name: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Literal["running", "done", "failed", "undone"] = "running"
    detail: str = ""


class Trouble(Frozen):
    """Why a migration waits for the operator."""

    step: str
    code: str
    message: str
    action: str
    since: datetime
    choices: tuple[str, ...]
    """Verbs the operator has now."""


class VerifyRecord(Frozen):
    """Result of the final comparison of one disk."""

    disk: str
    mode: Literal["full", "sampled", "same-volume"]
    """``same-volume``: nothing was copied, so nothing is compared; ``digest`` is what identifies the volume."""
    compared_bytes: int
    skipped_zero_bytes: int
    read_back_bytes: int = 0
    """Of the last delta: read back from the target and held against their digests before the VM was started."""
    mismatches: int
    first_mismatches: tuple[int, ...] = ()
    digest: str
    sample: str = ""


class Outage(Frozen):
    """When the guest stopped and when it ran again, by the orchestrator's clock."""

    stop_requested_at: datetime
    stopped_at: datetime | None = None
    final_delta_done_at: datetime | None = None
    started_at: datetime | None = None
    """The target VM runs."""
    healthy_at: datetime | None = None

    def seconds(self) -> float | None:
        """From the stop request until the target passed its health checks; None while it lasts."""
        return (self.healthy_at - self.stop_requested_at).total_seconds() if self.healthy_at else None


class DiskProgress(Frozen):
    """Progress of one disk in the copy that is running or ran last."""

    disk: str
    percent: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    sent_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None


class MigrationStatus(Frozen):
    """The answer to the ``status`` query."""

    migration: str
    plan: str
    vm: str
    mode: str
    source: str
    target: str
    phase: Phase
    paused: bool
    started_at: datetime
    now: datetime
    steps: tuple[StepRecord, ...]
    rounds: tuple[RoundRecord, ...]
    rounds_done: int
    disks: tuple[DiskProgress, ...]
    forecast: Forecast | None = None
    score: Score | None = None
    outage: Outage | None = None
    trouble: Trouble | None = None
    confirm_deadline: datetime | None = None
    confirm_default: str = "wait"
    verify: tuple[VerifyRecord, ...] = ()
    target_ref: str | None = None
    health: tuple[str, ...] = ()
    stream: StreamFigures | None = None
    hydrated_at: datetime | None = None
    switched_at: datetime | None = None
    """When the target was put on its own disks."""
    bandwidth_bytes_per_s: float | None = None
    allowed: tuple[str, ...] = ()
    """Verbs that would be accepted now."""


class MigrationReport(Frozen):
    """The lasting record of one migration: the workflow's result."""

    status: MigrationStatus
    outcome: Literal["completed", "rolled_back", "refused"]
    reason: str = ""
    ledger: Ledger
    leftovers: tuple[str, ...] = ()
    """Objects of this migration that were still found when it ended; empty is the promise."""
    bytes_read: int = 0
    bytes_sent: int = 0
    findings: tuple[str, ...] = ()
    """Precheck findings that were not ``ok``, one line each."""
    forecasts: tuple[Forecast, ...] = ()
    source_restored: bool | None = None
    """After a rollback: whether the source's definition equals the one before."""
    writes_kept_bytes: int | None = None
    drill: DrillRecord | None = None
