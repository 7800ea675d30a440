"""Running a VM on disks that another process serves over NBD, and putting it on its own volumes while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whimbrel.model.vm import TargetDisk, VolumeRef


class ServingPort(Protocol):
    """Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled.

    ``ComputePort.ensure_vm`` with ``TargetDisk.served`` defines a VM whose disk is that NBD export; the VM is paused,
    and given no error, while the export does not answer.
    """

    def local_path(self, volume: VolumeRef) -> str:
        """Path under which a process on the VM's host opens the volume (raw). Raises Unsupported, NotFound."""
        ...

    def client(self) -> tuple[int, int] | None:
        """User and group that open an export's unix socket for a VM of this host; None where that is not known."""
        ...

    def switch_disks(self, ref: str, disks: Sequence[TargetDisk], *, migration: str) -> None:
        """Put a VM from the exports that serve its disks onto its volumes, by ``disk.volume``.

        A running VM is switched without a pause that it can notice; the persistent definition is changed too; a VM
        that is off only has its definition changed. What the export held must be in the volume already. The same
        call again goes on where an earlier one was killed; a disk that is on its volume already is left alone.
        Raises NotFound, Conflict, NotReady (it goes on; try again).
        """
        ...

    def stalled(self, ref: str) -> bool:
        """Whether the VM was paused because an export did not answer: ``ComputePort.resume`` lets it go on."""
        ...

    def served_disks(self, ref: str) -> Sequence[str]:
        """Keys of the VM's disks that are on an export now, live or in its persistent definition."""
        ...
