"""A report as a real migration would leave it, made from few figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from whimbrel.model.forecast import Forecast, RoundRecord, Score
from whimbrel.model.ledger import Fate, Ledger, LedgerEntry
from whimbrel.model.progress import (
    DiskProgress,
    MigrationReport,
    MigrationStatus,
    Outage,
    Phase,
    StepRecord,
    Trouble,
    VerifyRecord,
)

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
MIB = 1 << 20
DIGESTS = ("xxh3-128:6f1c2a90d3b84e5577aa01bc9de2f344", "xxh3-128:0d91be7733c24f0a8e55c1a2b3d4e5f6")


def at(seconds: float) -> datetime:
    """A moment after the start."""
    return START + timedelta(seconds=seconds)


def rounds(count: int = 6) -> tuple[RoundRecord, ...]:
    """A baseline of 5 GiB and ever smaller deltas, the last one final."""
    made = [
        RoundRecord(
            number=0,
            kind="baseline",
            started_at=at(12),
            taken_at=at(12),
            elapsed_s=41.0,
            changed_bytes=30 << 30,
            sent_bytes=5 << 30,
            zeroed_bytes=25 << 30,
            digest=DIGESTS[0],
            rate_bytes_per_s=125.0 * MIB,
        )
    ]
    begin = 58.0
    for number in range(1, count):
        sent = max(int(400 * MIB / 2.6**number), 3 * MIB)
        rate = (118.0 - 4 * (number % 3)) * MIB
        made.append(
            RoundRecord(
                number=number,
                kind="final" if number == count - 1 else "delta",
                started_at=at(begin),
                taken_at=at(begin),
                elapsed_s=sent / rate + 1.5,
                changed_bytes=sent,
                sent_bytes=sent,
                digest=DIGESTS[1],
                rate_bytes_per_s=rate,
            )
        )
        begin += 14.0
    return tuple(made)


def _forecasts() -> tuple[Forecast, ...]:
    return tuple(
        Forecast(
            made_at=at(56 + 14 * index),
            stop_s=4.0,
            delta_bytes=outage * MIB,
            delta_s=outage - 10.0,
            boot_s=6.0,
            outage_s=outage,
            converges=None if index == 0 else True,
        )
        for index, outage in enumerate((31.0, 18.5, 14.2, 12.4, 11.8))
    )


def _steps() -> tuple[StepRecord, ...]:
    plan = [
        ("precheck", 0, 4),
        ("prepare", 4, 12),
        ("baseline", 12, 53),
        ("round", 58, 61),
        ("round", 72, 74.5),
        ("round", 86, 88),
        ("round", 100, 101.6),
        ("cutover", 114, 121),
        ("rebuild", 121, 124.5),
        ("verify", 124.5, 165),
        ("confirm", 165, 196),
        ("commit", 196, 199),
    ]
    return tuple(
        StepRecord(
            name=name,
            started_at=at(a),
            ended_at=at(b),
            outcome="done",
            detail="guest stopped by its agent" if name == "cutover" else "",
        )
        for name, a, b in plan
    )


def sample_status(**changes: Any) -> MigrationStatus:
    """The last status of a completed migration."""
    given: dict[str, Any] = {
        "migration": "ab12cd34ef",
        "plan": "autumn",
        "vm": "shop-db",
        "mode": "incremental",
        "source": "kvm-a",
        "target": "kvm-b",
        "phase": Phase.COMPLETED,
        "paused": False,
        "started_at": START,
        "now": at(199),
        "steps": _steps(),
        "rounds": rounds(),
        "rounds_done": 6,
        "disks": (DiskProgress(disk="vda", percent=100.0),),
        "score": Score(forecast_outage_s=11.8, actual_outage_s=10.5),
        "outage": Outage(
            stop_requested_at=at(114),
            stopped_at=at(117.5),
            final_delta_done_at=at(119.0),
            started_at=at(119.5),
            healthy_at=at(124.5),
        ),
        "verify": tuple(
            VerifyRecord(
                disk=disk,
                mode="full",
                compared_bytes=5 << 30,
                skipped_zero_bytes=15 << 30,
                mismatches=0,
                digest=digest,
            )
            for disk, digest in zip(("vda", "vdb"), DIGESTS, strict=True)
        ),
        "target_ref": "7d0c5a1e-0000-4c2f-9d3e-1f2e3d4c5b6a",
        "health": ("running", "console: login: seen"),
        "bandwidth_bytes_per_s": 200.0 * MIB,
    }
    return MigrationStatus(**{**given, **changes})


def sample_report(status: MigrationStatus | None = None, **changes: Any) -> MigrationReport:
    """A completed migration's report; ``changes`` replace fields of the report."""
    entries = [
        ("kvm-a", "checkpoint", "whimbrel-ab12cd34ef-0005", Fate.GONE, "shop-db"),
        ("kvm-b", "volume", "shop-db-vda-ab12cd34ef", Fate.KEPT, "fast"),
        ("kvm-b", "volume", "shop-db-vdb-ab12cd34ef", Fate.KEPT, "fast"),
        ("kvm-b", "vm", "shop-db", Fate.KEPT, ""),
        ("kvm-b", "writer", "whimbrel-ab12cd34ef-writer", Fate.GONE, ""),
    ]
    given: dict[str, Any] = {
        "status": status or sample_status(),
        "outcome": "completed",
        "ledger": Ledger(
            entries=tuple(
                LedgerEntry(cloud=cloud, kind=kind, name=name, fate=fate, noted_at=at(198), owner=owner)
                for cloud, kind, name, fate, owner in entries
            )
        ),
        "bytes_read": 6 << 30,
        "bytes_sent": sum(one.sent_bytes for one in rounds()),
        "findings": (
            "warn source.agent: the agent's channel is there but nothing answers",
            "info disk.read-only: read-only disks: vdc",
        ),
        "forecasts": _forecasts(),
    }
    return MigrationReport(**{**given, **changes})


def troubled_report() -> MigrationReport:
    """A migration that was rolled back after trouble, with something left over and no outage at all."""
    status = sample_status(
        phase=Phase.ROLLED_BACK,
        rounds=rounds(1),
        rounds_done=1,
        score=None,
        outage=None,
        verify=(),
        health=(),
        target_ref=None,
        steps=(
            StepRecord(name="precheck", started_at=at(0), ended_at=at(4), outcome="done"),
            StepRecord(
                name="baseline", started_at=at(4), ended_at=at(60), outcome="failed", detail="pool fast is full"
            ),
            StepRecord(name="rollback", started_at=at(60), outcome="running"),
        ),
        trouble=Trouble(
            step="baseline",
            code="QuotaExceeded",
            message="no space left in pool fast",
            action="free space, then resume",
            since=at(60),
            choices=("resume", "rollback"),
        ),
    )
    return sample_report(
        status,
        outcome="rolled_back",
        reason="rolled back by the operator: the pool cannot be enlarged today",
        leftovers=("kvm-b volume shop-db-vda-ab12cd34ef",),
        forecasts=(),
        findings=(),
        source_restored=True,
        writes_kept_bytes=7 * MIB,
    )
