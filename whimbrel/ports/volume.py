"""The volumes of a cloud: made, found, removed, opened for writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from whimbrel.model.facts import PoolFacts
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.vm import VmSpec, VolumeRef, VolumeSpec


class VolumePort(Protocol):
    """Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled."""

    def pools(self) -> Sequence[PoolFacts]:
        """All pools with their free space."""
        ...

    def ensure_volume(self, spec: VolumeSpec) -> VolumeRef:
        """Make an empty (all zero) thin volume, or find the one made before by the same name.

        Raises NotFound (pool), QuotaExceeded, Conflict (a volume of this name with another size or format).
        """
        ...

    def ensure_absent(self, name: str, pool: str, *, migration: str) -> None:
        """Remove a volume that ``migration`` made; one that is not there is fine. Raises Conflict if it is in use."""
        ...

    def owned(self, migration: str) -> Sequence[str]:
        """Names of volumes made by ``migration`` that exist now, in any pool."""
        ...

    def open_writer(self, key: str, volumes: Mapping[str, VolumeRef], *, migration: str) -> WriterSession:
        """Make volumes writable (and readable back) for the mover, by disk key.

        Again by the same key: the same session. A session left by a dead worker is adopted.
        Raises NotFound, Conflict (somebody else has a volume open).
        """
        ...

    def open_disk_writer(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """The same for disks of a VM that is off, to bring the target's writes back. Raises Conflict if it runs."""
        ...

    def close_writer(self, key: str) -> None:
        """Flush, and give the session up; one that is not there is fine."""
        ...

    def freeze_writer(self, key: str, point: str, *, migration: str) -> OpenPoint:
        """Freeze what all volumes of an open session hold at this instant, and serve that for reading only.

        The session goes on being written, by the same endpoints. Again by the same ``point``: the same state, for as
        long as the session lives; one that was frozen anew after it has another ``taken_at``.
        Raises NotFound (no such session), Conflict (another point of it is frozen, or it is another migration's),
        QuotaExceeded, Unsupported.
        """
        ...

    def thaw_writer(self, key: str, point: str) -> None:
        """End a frozen point and remove what it needed; one that is not there is fine. ``close_writer`` does it too."""
        ...
