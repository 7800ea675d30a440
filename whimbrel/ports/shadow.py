"""Shadows: what a streamed VM writes at the target, kept at the source as well, so that a rollback loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whimbrel.model.point import WriterSession
from whimbrel.model.vm import VmSpec


class ShadowPort(Protocol):
    """An overlay over each disk of a stopped VM: the disk itself stays as it was until the shadow is merged.

    ``key`` names the session that serves the overlays. Every method may raise Unavailable, AuthFailed,
    PermissionDenied, Throttled.
    """

    def open(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """Make the overlays where they are missing and serve them writable (reads see disk plus overlay).

        Again by the same key: the same session with all that was written. A session that died is made anew on the
        same overlays. While it is open nobody can start the VM or write its disks. Raises Conflict when the VM
        runs, NotFound, Unsupported, QuotaExceeded.
        """
        ...

    def merge(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> int:
        """End the session, bring what the overlays hold into the disks, remove the overlays; bytes brought back.

        May be killed at any moment and called again: until an overlay is removed, disk plus overlay is the truth.
        Overlays that are not there are fine. Raises Conflict when the VM runs.
        """
        ...

    def drop(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> None:
        """End the session and remove the overlays with what they hold; the disks stay as they are."""
        ...

    def owned(self, vm: VmSpec, migration: str) -> Sequence[str]:
        """Names of the migration's overlays that exist now."""
        ...
