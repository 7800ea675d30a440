"""Handing a VM's disks from one cloud to another that sees the same storage; no byte is copied.

At any moment one side only can open the disks: the source by its VM's definition, until it is released; then the
target, until it is abandoned; then the source again, when it is reclaimed. ``turn`` numbers the releases of one
migration: an attempt that wakes up after its time is told from the one that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from whimbrel.model.handover import Hold, StoredDisk
from whimbrel.model.vm import TargetDisk, VmSpec


class HandoverPort(Protocol):
    """``pools`` maps pools of the cloud that released to pools of this one; empty: they are this cloud's own.

    Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled.
    """

    def write_marker(self, pool: str, name: str, text: str) -> None:
        """Leave a small note on the storage of ``pool``; again: replaced. Names end with a migration's id.

        Raises NotFound (pool); Unsupported where the storage has no place for one, as with LUNs: their own
        identities have to prove it then.
        """
        ...

    def read_marker(self, pool: str, name: str) -> str | None:
        """The note, looked for on the storage now; None if this side does not see it. Raises NotFound (pool)."""
        ...

    def remove_marker(self, pool: str, name: str) -> None:
        """Remove the note; one that is not there, or a pool that is not, is fine."""
        ...

    def stored(self, vm: VmSpec) -> Sequence[StoredDisk]:
        """Where the storage has the VM's disks; nothing is changed. A released VM gives what it had. NotFound."""
        ...

    def look(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[TargetDisk]:
        """The disks as this cloud sees them, nothing changed. Raises NotFound (image or chain), Conflict (unlike)."""
        ...

    def openers(
        self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str, locks: bool = True
    ) -> Sequence[str]:
        """Who has an image open now, in words: VMs that are on, sessions, and whoever else holds a lock on it.

        Without ``locks`` only those that this cloud knows by name: while the VM itself runs, the locks are its own.
        """
        ...

    def users(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[str]:
        """Names of VMs whose definitions, on or off, would open or do open an image in a way that conflicts."""
        ...

    def release(self, vm: VmSpec, *, migration: str, turn: int) -> Sequence[StoredDisk]:
        """Take the disks from the VM, which is off: from now on it cannot be started with them, nor at all.

        What was there is kept in the cloud, so that ``reclaim`` gives exactly it back. The same call again, and one
        that was killed, end alike. Raises Conflict when the VM is on, has a saved memory image or a running job, or
        another migration has its disks; NotFound; Unsupported (a disk in no pool, a transient VM).
        """
        ...

    def held(self, ref: str) -> Hold | None:
        """Who has released the VM, read back now; None when its disks are its own. Raises NotFound."""
        ...

    def adopt(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> Sequence[TargetDisk]:
        """Take the released disks over as they are: same image by identity, size and format, chain complete.

        Found, never copied; again: the same answer. Raises NotFound; Conflict (another image, or a VM here has it).
        """
        ...

    def abandon(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> None:
        """Undo ``adopt``: this cloud forgets the disks and keeps their data. Never adopted is fine."""
        ...

    def reclaim(self, vm: VmSpec, *, migration: str, turn: int) -> VmSpec:
        """Undo ``release``: the VM as it was, read back. ``vm`` was read before the release, and stands in for
        what the cloud has lost.

        A VM that was never released, or was given back, is left alone. Raises Conflict when it was released in a
        later turn or by another migration: then it is not ours to give back.
        """
        ...

    def forget_vm(self, ref: str, *, migration: str) -> None:
        """Remove what ``release`` has left of the VM; data is kept. One that is not there is fine.

        Raises Conflict for a VM that this migration has not released.
        """
        ...

    def released(self, migration: str) -> Sequence[str]:
        """Names of VMs whose disks this migration has released and not given back."""
        ...
