"""Points in time and what changed between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whimbrel.model.point import OpenPoint


class PointInTimePort(Protocol):
    """All disks of a VM are frozen at the same instant, so that a rebuilt guest is at least crash consistent.

    Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled.
    """

    def open(
        self,
        ref: str,
        disks: Sequence[str],
        *,
        key: str,
        since: str | None = None,
        migration: str,
        track: bool = True,
        resting: bool = False,
    ) -> OpenPoint:
        """Open a point in time named ``key``; a running, paused or stopped VM is read in the way that suits it.

        ``since`` is the token of an earlier point. With ``track`` the point leaves a token where the disks can carry
        one. With ``resting`` the caller reads nothing of it before the VM is off, and keeps it off until the point is
        closed, so the disks themselves may be the point, without a token: nothing is waited for while the guest is
        down. On a VM that is still on it is asked for only where ``Capabilities.rests`` says so; Unsupported tells that
        this VM's disks cannot be opened before it is off.
        The same call again returns the point that is open already (also when another worker opened it).
        Raises BaseLost when ``since`` is unknown or its tracking is damaged, Conflict when somebody else's job is in
        the way, NotFound, Unsupported.
        """
        ...

    def close(self, ref: str, key: str, *, migration: str) -> None:
        """End reading, remove temporary files, keep the token. A point that is not open is fine."""
        ...

    def forget(self, ref: str, *, migration: str, keep: Sequence[str] = ()) -> None:
        """Remove all tokens of this migration but those in ``keep``, from the VM's metadata and from its disks.

        Works on running and stopped VMs; tokens of others are never touched.
        """
        ...

    def owned(self, ref: str, migration: str) -> Sequence[str]:
        """Tokens and open points of this migration that exist on the VM now, metadata and disks both looked at."""
        ...
