"""A KVM lab cloud that is read through libvirt's streams only, as a Xen host is."""

from __future__ import annotations

from typing import Any

from drivers.libvirt import LibvirtCloud, volume_opener
from labs.kvm import KvmLab
from tests.contract.harness import Lack
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.dataplane import register_opener
from whimbrel.errors import InvalidPlan


class StreamHarness(LibvirtHarness):
    """``guest_write`` turns the VM on for the write and off again; the opener finds the newest cloud, as a worker's."""

    lacks = LibvirtHarness.lacks | {Lack.LIVE_POINTS, Lack.FOREIGN_JOBS, Lack.FOREIGN_TOKENS, Lack.DAMAGE}

    def __init__(self, lab: KvmLab, cloud: str = "a", **options: Any) -> None:
        super().__init__(lab, cloud, transport="stream", **options)
        register_opener("libvirt-volume", volume_opener(self.find))

    def find(self, name: str) -> LibvirtCloud:
        """The cloud of this name, connecting anew when a test has closed it."""
        if name != self._clouds[-1].name:
            raise InvalidPlan(f"there is no cloud {name}")
        return self._clouds[-1]

    def over_nbd(self) -> LibvirtCloud:
        """The same host as a QEMU host: what a test does behind the stream reader's back."""
        cloud = LibvirtCloud("other", uri=self._lab.uri(self._cloud), runtime_dir=str(self.work))
        self._clouds.insert(0, cloud)
        return cloud

    def guest_write(self, ref: str, disk: str, offset: int, data: bytes) -> None:
        on = bool(self.domain(ref).isActive())
        if not on:
            self.domain(ref).create()
        super().guest_write(ref, disk, offset, data)
        if not on:
            self.cloud.compute.force_off(ref)
