"""What a driver's test hands to the contract suites: its cloud, and hands on the platform behind the ports' back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol

import pytest

from whimbrel.model.vm import DiskFormat, VolumeRef
from whimbrel.ports.cloud import Cloud


class Lack(StrEnum):
    """What a platform, or its lab, cannot show. Naming one leaves tests out, with the reason in pytest's report."""

    GUEST_STOPS = "guests of this lab do not answer a shutdown request"
    SAME_NAMES = "this platform does not let two VMs have one name"
    QUOTA = "pools of this lab do not run out of room for a thin volume"
    COLD_TOKENS = "a point of a stopped VM leaves no token on this platform"
    FOREIGN_TOKENS = "this lab cannot leave a checkpoint of another tool"
    FOREIGN_JOBS = "this lab cannot run a job of another tool on a VM"
    DAMAGE = "this lab cannot damage change tracking"
    AGENT = "guests of this lab have no agent"
    LIVE_POINTS = "this host gives disks of stopped VMs only"
    TWO_FORMATS = "this platform has one volume format only"
    AUTOSTART = "this platform has no setting of its own for starting a VM with its host"
    ALLOCATION = "this way to the volumes does not tell what of them is allocated"
    WRITE_BACK = "disks that a VM has cannot be written on this way"
    OWN_IDS = "this platform gives every VM an id of its own, so a rebuilt one cannot meet its source's"


class Harness(Protocol):
    """A fresh, empty corner of a cloud for one test; whatever is made in it is removed when the test's fixture ends.

    Disks are 1 to 16 MiB. Nothing here is measured by speed.
    """

    @property
    def cloud(self) -> Cloud:
        """The driver under test."""
        ...

    @property
    def pool(self) -> str:
        """A pool that exists and has room."""
        ...

    @property
    def network(self) -> str:
        """A network that exists."""
        ...

    @property
    def lacks(self) -> frozenset[Lack]:
        """What cannot be shown here."""
        ...

    def fresh_cloud(self) -> Cloud:
        """Another object on the same cloud, sharing nothing in memory with ``cloud``: a restarted worker's view."""
        ...

    def make_vm(
        self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False, name: str | None = None
    ) -> str:
        """A VM that no migration made; disks ``vda``... in ``pool``, all zeros, one NIC on ``network``.

        Returns its ref. A running one may be a bare guest that does nothing by itself.
        """
        ...

    def start_by_hand(self, ref: str) -> bool:
        """Start a VM as its owner would, past the driver; whether it runs then."""
        ...

    def remove_vm(self, ref: str) -> None:
        """Remove such a VM with its disks, as its owner would."""
        ...

    def guest_write(self, ref: str, disk: str, offset: int, data: bytes) -> None:
        """Write through the hypervisor that runs the VM, so that tracking sees it.

        The VM is on, or may be off where the platform lacks live points.
        """
        ...

    def read_disk(self, ref: str, disk: str) -> bytes:
        """The truth of a disk as its VM would read it now, on or off, by other means than the driver's."""
        ...

    def read_volume(self, volume: VolumeRef) -> bytes:
        """The truth of a volume that nothing has open, by other means than the driver's."""
        ...

    def add_foreign_token(self, ref: str) -> str:
        """Leave another tool's checkpoint on a running VM; returns its name."""
        ...

    def foreign_tokens(self, ref: str) -> Collection[str]:
        """Checkpoints of other tools that are on the VM and whole."""
        ...

    def damage_tracking(self, ref: str) -> None:
        """Make the VM's tracking unable to answer, as a crash of the hypervisor does; the VM is off afterwards."""
        ...

    def foreign_job(self, ref: str) -> AbstractContextManager[None]:
        """Another tool's backup job runs on the VM inside the ``with``."""
        ...

    def set_agent(self, ref: str, *, hostname: str) -> None:
        """Let the running guest have an agent that tells this host name."""
        ...


def needs(harness: Harness, lack: Lack) -> None:
    """Leave the test out if the harness says that it cannot show this."""
    if lack in harness.lacks:
        pytest.skip(f"left out by the harness: {lack}")
