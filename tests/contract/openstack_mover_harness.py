"""The OpenStack harness with a worker whose Ceph key does not open the pool: bytes go through mover servers."""

from __future__ import annotations

from typing import Any

from drivers.ceph import RbdImages
from drivers.openstack.marks import SIZE
from drivers.openstack.mover import MoverSettings
from labs.openstack import CloudHandle, ceph
from labs.openstack_stage import ELSEWHERE
from tests.contract.harness import Lack
from tests.contract.openstack_harness import OpenStackHarness
from whimbrel.model.vm import DiskFormat, VolumeRef


def mover_settings(lab: CloudHandle) -> MoverSettings:
    """As whimbrel.yaml would say it."""
    return MoverSettings(
        image=lab.mover_image, flavor=lab.mover_flavor, network=lab.network, tls_dir=str(lab.mover_tls)
    )


def key_without_the_pool(lab: CloudHandle) -> RbdImages:
    """A Ceph user of the lab that sees the shared pool only."""
    layout = lab.layout.lab
    conf = ceph.ensure_key(layout, ELSEWHERE, [lab.shared_pool], layout.root / ELSEWHERE)
    return RbdImages(conf=str(conf), user=ELSEWHERE)


class MoverHarness(OpenStackHarness):
    """The same by the member, whose key to Ceph does not open the pool of the suites' volumes.

    Volumes carry the suites' small sizes, as those do that a migration has made. Where a suite asks for qcow2, which
    elsewhere can be tracked, the disk lies in the pool that the key does open.
    """

    lacks = OpenStackHarness.lacks | {Lack.ALLOCATION, Lack.WRITE_BACK}
    account = "-member"

    def way_to_the_bytes(self) -> dict[str, Any]:
        return {
            "images": key_without_the_pool(self.lab),
            "pools": {self.lab.shared_type: self.lab.shared_pool},
            "mover": mover_settings(self.lab),
        }

    def volume_metadata(self, size_bytes: int) -> dict[str, str]:
        return {SIZE: str(size_bytes)}

    def volume_type(self, disk_format: DiskFormat) -> str:
        return self.lab.shared_type if disk_format == "qcow2" else self.pool

    def read_volume(self, volume: VolumeRef) -> bytes:
        content = super().read_volume(volume)
        assert not content[volume.size_bytes :].strip(b"\0")  # Cinder's whole GiB
        return content[: volume.size_bytes]
