"""Disks on storage that two clouds see: named so that the one finds what the other has."""

from __future__ import annotations

from whimbrel.model.endpoint import Frozen
from whimbrel.model.vm import DiskFormat, DiskSpec


class StoredImage(Frozen):
    """One image, volume or LUN. ``pool`` and ``handle`` name it; ``identity`` tells it from a copy of it."""

    pool: str | None
    """Pool or volume type in the cloud that was asked; None when it lies in none that this cloud knows."""
    handle: str
    """Name within its pool, or id on the storage: the same for every cloud that sees this storage."""
    size_bytes: int
    format: DiskFormat
    identity: str = ""
    """What both clouds read of the very same image while nobody writes it, and of no copy (times, WWN, object id)."""


class StoredDisk(Frozen):
    """A disk of a VM, with its image and the images below it, nearest first."""

    spec: DiskSpec
    image: StoredImage
    chain: tuple[StoredImage, ...] = ()

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """All images that the disk is made of."""
        return (self.image, *self.chain)


class Hold(Frozen):
    """Who has taken the disks of a VM, and in which of its turns."""

    migration: str
    turn: int
