"""A point in time of a VM's disks: opened, asked what changed, read, closed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from whimbrel.model.endpoint import Endpoint, Frozen

PointKind = Literal["live", "cold"]


class DiskPoint(Frozen):
    """One disk in a point in time."""

    key: str
    size_bytes: int
    endpoint: Endpoint
    tracked: bool = False
    """The endpoint answers what changed since the base; without it only a full read or a hash scan can tell."""


class OpenPoint(Frozen):
    """A frozen, readable state of all disks of a VM at one instant; safe to be opened twice by the same ``key``."""

    key: str
    vm_ref: str
    kind: PointKind
    taken_at: datetime
    token: str | None
    """Name by which a later point may ask for what changed since this one; None when the disks carry no tracking."""
    since: str | None = None
    disks: tuple[DiskPoint, ...]

    def disk(self, key: str) -> DiskPoint:
        """The disk with this key. Raises KeyError."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise KeyError(key)


class WriterSession(Frozen):
    """Volumes opened for writing by the mover; safe to be opened twice by the same ``key``."""

    key: str
    disks: tuple[DiskPoint, ...]

    def disk(self, key: str) -> DiskPoint:
        """The volume opened for the disk with this key. Raises KeyError."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise KeyError(key)
