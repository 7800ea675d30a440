"""For every rule of mode dual-attach: facts with which it finds something or does not know."""

from __future__ import annotations

from typing import Any

from tests.precheck.healthy import facts
from whimbrel.model.finding import PrecheckFacts


def shared(**changes: Any) -> PrecheckFacts:
    """Healthy facts of a VM whose disks are on storage that both clouds see."""
    base = {"plan__mode": "dual-attach", "handover__looked": True, "handover__marked": True}
    return facts(**{**base, **changes})


FOUND: tuple[tuple[str, PrecheckFacts, tuple[str, ...]], ...] = (
    ("handover.possible", shared(source__capabilities__handover=False), ("kvm-a", "mode: incremental")),
    ("handover.possible", shared(target__capabilities__handover=False), ("kvm-b",)),
    ("handover.possible", shared(handover__looked=False, handover__why_not="no pool"), ("no pool", "storage pools")),
    ("handover.pools", shared(handover__outside=("vda: base.qcow2 in no pool",)), ("base.qcow2", "storage:")),
    ("handover.same-storage", shared(handover__apart=("ssd and fast",)), ("ssd and fast", "mode: cold")),
    ("handover.same-images", shared(handover__unlike=("vda: not there",)), ("vda: not there", "refresh")),
    ("handover.unopened", shared(handover__openers=("VM backup",)), ("VM backup", "two writers")),
    ("handover.unused", shared(handover__users=("old-copy",)), ("old-copy", "undefine")),
    ("handover.free", shared(handover__taken="0123456789"), ("0123456789", "roll back")),
    ("handover.history", shared(source__snapshots=("before-update",)), ("before-update", "delete")),
    ("handover.history", shared(source__disks__0__foreign_tracking=("veeam-1",)), ("veeam-1",)),
)
UNKNOWN: tuple[tuple[str, PrecheckFacts], ...] = (
    ("handover.possible", shared(source__capabilities=None)),
    ("handover.same-storage", shared(handover__marked=False)),
    *(
        (f"handover.{rule}", shared(handover__looked=False))
        for rule in ("pools", "same-storage", "same-images", "unopened", "unused", "free")
    ),
    ("handover.history", shared(source__vm=None)),
)
