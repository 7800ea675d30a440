"""Volumes whose storage imports their bytes from an HTTP address while a VM runs on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from whimbrel.model.vm import TargetDisk


class ImportPort(Protocol):
    """How the disks of a cloud are fed whose hypervisors cannot be given an export of ours (``Capabilities.imports``).

    The order is: ``begin`` on an empty volume, ``ComputePort.ensure_vm``, a point in time of the VM (its first state,
    which a rollback needs), ``ComputePort.start``; while it runs ``fill``; then ``ServingPort.switch_disks``, after
    which nothing is asked of the address any more. Until then the driver must keep everybody else from the volumes.
    Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled.
    """

    @property
    def gateway_address(self) -> str:
        """Address of the mover that the cloud's storage and hypervisors reach."""
        ...

    def begin(self, disk: TargetDisk, url: str, *, migration: str) -> None:
        """Let the volume's bytes come from ``url``, which is a secret; begun before is fine.

        Raises NotFound, Conflict (it holds data, is in use, is another migration's, or imports from elsewhere),
        Unsupported.
        """
        ...

    def fill(
        self, disk: TargetDisk, *, should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> bool:
        """Bring every byte that is missing; False when ``should_stop`` said so. Goes on where it was killed.

        ``on_progress`` gets bytes done and bytes in all, roughly. Raises NotFound (there is no import), Unavailable.
        """
        ...

    def give_up(self, disk: TargetDisk, *, migration: str) -> None:
        """End an import that is not complete, with the bytes that it has; its volume can then be removed, or begun.

        One that was never begun, or is complete and detached, is left alone. Raises NotReady while it is in use.
        """
        ...

    def try_out(self, disk: TargetDisk, *, migration: str) -> None:
        """Let the cloud itself open an import that was begun, as far as it can without a VM; again is fine.

        What stays of a failure goes with the volume. Raises NotReady (not yet), and anything else when it cannot.
        """
        ...

    def blockers(self, pools: Sequence[str]) -> Sequence[str]:
        """Why volumes of these pools cannot be imported, in words; empty when they can."""
        ...
