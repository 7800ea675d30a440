"""The VMs of a cloud: looked at, powered, rebuilt, removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whimbrel.model.vm import Power, TargetVm, VmSpec


class ComputePort(Protocol):
    """``ref`` is ``VmSpec.ref``; every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled."""

    def inventory(self) -> Sequence[VmSpec]:
        """All VMs the credentials can see, without the driver's own mover sessions."""
        ...

    def inspect(self, vm: str) -> VmSpec:
        """One VM by ``ref`` or by name. Raises NotFound; Conflict when a name fits several."""
        ...

    def power(self, ref: str) -> Power:
        """The power state, read from the cloud now. Raises NotFound."""
        ...

    def start(self, ref: str, *, paused: bool = False) -> None:
        """Power on; a VM that is on already stays as it is. ``paused`` only where ``capabilities.start_paused``.

        Raises QuotaExceeded when there is no room for it; then it has not run, not for an instant.
        """
        ...

    def resume(self, ref: str) -> None:
        """Let a paused VM run; a running one stays as it is. Raises Conflict when it is off."""
        ...

    def request_stop(self, ref: str) -> None:
        """Ask the guest to shut down and return at once; a VM that is off stays as it is."""
        ...

    def force_off(self, ref: str) -> None:
        """Take the power away, after writing out what the hypervisor holds; a VM that is off stays as it is."""
        ...

    def ensure_vm(self, vm: TargetVm) -> VmSpec:
        """Define the VM, powered off, tagged with its migration; the same call again returns the same VM.

        Raises Conflict when the name, uuid or a MAC belongs to a VM that this migration did not make.
        """
        ...

    def ensure_absent(self, ref: str, *, migration: str) -> None:
        """Power off and undefine a VM that ``migration`` made; no disk is removed. A VM that is not there is fine.

        What the migration had reserved for it (ports) goes too, also for a VM that was never made.
        Raises Conflict for a VM that is not tagged as made by this migration.
        """
        ...

    def release_tag(self, ref: str, *, migration: str) -> None:
        """Mark the VM as handed over: it no longer counts as the migration's to remove."""
        ...

    def set_autostart(self, ref: str, *, enabled: bool) -> None:
        """Whether the cloud starts the VM by itself when its host comes up."""
        ...

    def fence(self, ref: str, *, migration: str) -> None:
        """Let nobody start the VM but who may override it, until ``unfence``; only where ``capabilities.fences``.

        Again is fine. One that is fenced already, by whomever, stays as it is. Raises NotFound.
        """
        ...

    def unfence(self, ref: str, *, migration: str) -> None:
        """Take the fence away. Not fenced, another's fence, or no VM: nothing is done."""
        ...

    def fenced(self, ref: str) -> str | None:
        """The migration that has fenced the VM. Raises NotFound."""
        ...

    def owned(self, migration: str) -> Sequence[str]:
        """Names of VMs tagged as made by ``migration`` and not handed over."""
        ...
