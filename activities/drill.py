"""Activity that keeps the record of a drill where the prechecks of the real migration look for it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError
from temporalio import activity

from whimbrel.contracts.activity_io import Done
from whimbrel.model.drill import DrillRecord
from whimbrel.stream.chunkmap import sync_directory
from whimbrel.stream.place import traces_of

KEPT_RECORDS = 20


def records_of(state_dir: Path, cloud: str, ref: str) -> Path:
    """Directory of a VM's drill records."""
    return state_dir / "drills" / re.sub(r"[^A-Za-z0-9_.-]", "_", f"{cloud}_{ref}")


def last_passed(state_dir: Path, cloud: str, ref: str) -> datetime | None:
    """When the newest passed drill of the VM ended; None when none is known."""
    directory = records_of(state_dir, cloud, ref)
    found: list[datetime] = []
    for path in directory.glob("*.json") if directory.is_dir() else ():
        with suppress(ValidationError, OSError):
            record = DrillRecord.model_validate_json(path.read_text(encoding="utf-8"))
            if record.passed:
                found.append(record.ended_at)
    return max(found, default=None)


def trace_count(state_dir: Path, cloud: str, ref: str, disks: tuple[str, ...]) -> int:
    """How many recorded traces of the VM's disks there are."""
    places = [traces_of(state_dir, f"{cloud}/{ref}", disk) for disk in disks]
    return sum(len(list(place.glob("*.trace"))) for place in places if place.is_dir())


class DrillActivities:
    """Records of drills."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    @activity.defn(name="drill.record", no_thread_cancel_exception=True)
    def record(self, record: DrillRecord) -> Done:
        """Keep the record, durably; again by the same migration: in place of the earlier one."""
        directory = records_of(self._state_dir, record.source, record.ref)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{record.migration}.json"
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(directory)
        by_age = sorted(directory.glob("*.json"), key=lambda kept: kept.stat().st_mtime)
        for old in by_age[:-KEPT_RECORDS]:
            old.unlink(missing_ok=True)
        return Done(note=str(path))
