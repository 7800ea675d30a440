"""What a driver's test hands to the contract suite of handovers: two clouds on one storage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from whimbrel.model.vm import DiskFormat
from whimbrel.ports.cloud import Cloud


class SharingHarness(Protocol):
    """A fresh corner of two clouds that have one storage behind a pool; what is made in it is removed in the end."""

    @property
    def source(self) -> Cloud:
        """Where VMs are made."""
        ...

    @property
    def target(self) -> Cloud:
        """Where they are handed to."""
        ...

    @property
    def pool(self) -> str:
        """The shared pool, of this name on both."""
        ...

    @property
    def apart(self) -> str:
        """A pool of this name on both that is not one storage."""
        ...

    @property
    def network(self) -> str:
        """A network of both."""
        ...

    def fresh(self, cloud: Cloud) -> Cloud:
        """Another object on the same cloud: a restarted worker's view."""
        ...

    def make_vm(self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False) -> str:
        """A VM at the source with its disks in ``pool``; its ref."""
        ...

    def write(self, ref: str, disk: str, data: bytes) -> None:
        """Put content at the start of a disk of a source VM that is off."""
        ...

    def read(self, cloud: Cloud, location: str, form: DiskFormat) -> bytes:
        """The truth of an image by its location in a cloud."""
        ...

    def force_start(self, cloud: Cloud, ref: str) -> bool:
        """Start a VM as its operator would, past the driver; whether it runs then."""
        ...

    def opened_by_a_stranger(self, location: str, form: DiskFormat) -> AbstractContextManager[None]:
        """Somebody who is in neither cloud has the image open for writing inside the ``with``."""
        ...
