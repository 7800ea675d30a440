"""Two clouds of the OpenStack lab and the Ceph pool that both see."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from drivers.ceph import RbdImages, binding
from drivers.ceph.cluster import pool_of
from drivers.openstack import OpenStackCloud
from labs.openstack import CloudHandle, OpenStackLab
from tests.contract.openstack_harness import OpenStackHarness, Patient
from whimbrel.model.vm import DiskFormat
from whimbrel.ports.cloud import Cloud

LINGER_S = 2.0


class _Side(OpenStackHarness):
    """A cloud whose VMs have their volumes in the shared pool.

    With ``apart`` the tenant's entry is a plain member's, and the administrator's has a project of its own.
    """

    def __init__(self, lab: CloudHandle, *, apart: bool = False) -> None:
        self._apart = apart
        self._admin: Any = None
        if apart:
            self.account = "-member"
            self._admin = lab.connect()
        super().__init__(lab)
        self.pool = lab.shared_type

    def _ids(self) -> set[str]:
        """What is in the administrator's project, and on its way out of it, too."""
        if self._admin is None:
            return super()._ids()
        api = self._admin.block_storage
        passing = [*api.volumes(), *api.transfers()]
        return super()._ids() | {f"of the admin: {thing.id}" for thing in passing}

    def records(self) -> list[Any]:
        """All volumes that the account, or its administrator, has."""
        apis = [self.conn, self._admin] if self._admin is not None else [self.conn]
        return [volume for api in apis for volume in api.block_storage.volumes()]

    def end(self) -> None:
        if self._admin is not None:
            for volume in list(self._admin.block_storage.volumes()):
                if f"of the admin: {volume.id}" not in self._before:
                    self._admin.block_storage.unmanage_volume(volume.id)
            self._admin.close()
            self._admin = None
        super().end()

    def _image(self, volume: str) -> str:
        return f"{self.lab.shared_pool}/volume-{volume}"

    def fresh_cloud(self) -> Cloud:
        """Its pool ``apart`` is another one in each cloud."""
        lab = self.lab
        made = OpenStackCloud(
            lab.name,
            clouds_yaml_name=self._entry,
            admin_clouds_yaml_name=lab.name if self._apart else None,
            config_file=lab.clouds_yaml,
            images=RbdImages(conf=str(lab.ceph_conf), user=lab.ceph_user),
            pools={lab.shared_type: lab.shared_pool, "apart": lab.pool},
        )
        made.handover._stored.linger_s = LINGER_S  # type: ignore[union-attr]
        self._clouds.append(made)
        return cast(Cloud, Patient(made))


class OpenStackSharing:
    """Implements tests.contract.sharing_harness.SharingHarness. VMs are bare: firmware that finds nothing to boot."""

    apart = "apart"

    def __init__(self, lab: OpenStackLab, *, admin_apart: bool = False) -> None:
        self.a, self.b = (_Side(lab.cloud(name), apart=admin_apart) for name in ("a", "b"))
        self.pool, self.network = self.a.pool, self.a.network
        self.source, self.target = self.a.cloud, self.b.cloud
        self._images = set(self.a.rbd("ls", "shared").split())

    def fresh(self, cloud: Cloud) -> Cloud:
        return self.a.fresh_cloud() if cloud.name == "a" else self.b.fresh_cloud()

    def end(self) -> None:
        """Remove what the test has left, and images that no Cinder has any more."""
        self.b.end()
        self.a.end()
        for image in set(self.a.rbd("ls", "shared").split()) - self._images:
            self.a.rbd("rm", "--no-progress", f"shared/{image}")

    def side(self, cloud: Cloud) -> _Side:
        return self.a if cloud.name == "a" else self.b

    def make_vm(self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False) -> str:
        return self.a.make_vm(disks, running=running)

    def write(self, ref: str, disk: str, data: bytes) -> None:
        volume = self.source.compute.inspect(ref).disk(disk).location
        with self.opened(f"volume-{volume}") as image:
            image.write(data, 0)
            image.flush()

    def read(self, cloud: Cloud, location: str, form: DiskFormat) -> bytes:
        del form
        return self.side(cloud)._read(location)

    def force_start(self, cloud: Cloud, ref: str) -> bool:
        """Through Nova's API; it has tried once the task has ended."""
        side = self.side(cloud)
        server, api = side._server(ref), side.conn.compute
        api.start_server(server)
        side._until(lambda: api.get_server(server).task_state is None)
        return bool(api.get_server(server).vm_state == "active")

    @contextmanager
    def opened(self, image: str) -> Iterator[Any]:
        """An image of the shared pool, open for writing, by a client that is in neither cloud."""
        lab = self.a.lab
        with (
            pool_of(str(lab.ceph_conf), lab.ceph_user, lab.shared_pool) as pool,
            binding.load().rbd.Image(pool.ioctx, image) as opened,
        ):
            yield opened

    def lead_to(self, image: str, name: str) -> None:
        """Give an image another name beside its own, as a rename does that is killed on the way."""
        lab = self.a.lab
        with pool_of(str(lab.ceph_conf), lab.ceph_user, lab.shared_pool) as pool:
            pool.ioctx.write_full(f"rbd_id.{name}", struct.pack("<I", len(image)) + image.encode())

    @contextmanager
    def opened_by_a_stranger(self, location: str, form: DiskFormat) -> Iterator[None]:
        del form
        with self.opened(f"volume-{location}"):
            yield
