"""What a project may have in all at a cloud, and the sizes of VM that the cloud offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from whimbrel.model.endpoint import Frozen

Resource = Literal["VMs", "vCPUs", "memory", "volumes", "volume space", "snapshots", "ports"]
SPACE: frozenset[Resource] = frozenset({"memory", "volume space"})
"""Counted in bytes; everything else in pieces."""


class Quota(Frozen):
    """One limit of the project; what is not limited has none."""

    resource: Resource
    limit: int
    used: int
    """Reserved by requests that are under way included."""
    pool: str | None = None
    """Counts only what lies in this pool or has this volume type; None counts everything."""

    @property
    def left(self) -> int:
        """What may be added; 0 where more is used than allowed."""
        return max(self.limit - self.used, 0)


class MoverServer(Frozen):
    """What reads or writes volumes for us where no mover reaches them: one server for each session."""

    vcpus: int
    memory_bytes: int
    max_disks: int
    """Volumes of one session."""
    pools_reached: tuple[str, ...] = ()
    """Pools that need none."""


class Limits(Frozen):
    """All that a project may have, and how it is counted."""

    quotas: tuple[Quota, ...] = ()
    """Empty where the cloud has none."""
    volume_unit_bytes: int = 1
    """Volumes count in whole units of this."""
    volume_max_bytes: int | None = None
    """Largest volume that may be made."""
    snapshots_take_space: bool = False
    """A snapshot counts its volume's whole size against the quota of volume space."""
    volumes_made: tuple[str, ...] = ()
    """Names of volumes that migrations have made: their quota is used already."""
    snapshots_made: dict[str, int] = Field(default_factory=dict)
    """Volume's location -> snapshots of it that migrations have made."""
    mover: MoverServer | None = None
    """None where every pool is reached directly, or by nobody."""

    def served(self, pool: str | None) -> bool:
        """Whether volumes of this pool go through a server of ours."""
        return self.mover is not None and pool not in self.mover.pools_reached

    def counted(self, size_bytes: int) -> int:
        """What a volume of this size counts."""
        return -(-size_bytes // self.volume_unit_bytes) * self.volume_unit_bytes


class VmSize(Frozen):
    """A size that VMs come in (a flavor). A cloud that builds any size has none."""

    id: str
    name: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int = 0
    """Of a local root disk that comes with it."""
    special: tuple[str, ...] = ()
    """What it gives besides: GPUs, dedicated CPUs, huge pages. Scarce, and nothing that a VM gets by mistake."""


def fitting(sizes: Iterable[VmSize], *, vcpus: int, memory_bytes: int, name: str = "") -> VmSize | None:
    """The size that a VM gets, or None when none is enough: exactly its own where there is one, else the smallest.

    ``name`` is the size that the VM has now. A special one is taken only if it is of that name.
    """

    def distance(size: VmSize) -> tuple[bool, int, int, int, bool, str]:
        exact = size.vcpus == vcpus and size.memory_bytes == memory_bytes
        # VMs boot from volumes, so a local disk is only wasted
        return (not exact, size.vcpus, size.memory_bytes, size.disk_bytes, size.name != name, size.name)

    enough = [
        size
        for size in sizes
        if size.vcpus >= vcpus and size.memory_bytes >= memory_bytes and (not size.special or size.name == name)
    ]
    return min(enough, key=distance, default=None)
