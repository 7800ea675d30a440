"""Several imported disks of one VM on the lab's real Cinder, Nova and Ceph: what one of them lacks holds all of it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.ceph import RbdImages, open_rbd
from drivers.openstack import OpenStackCloud
from drivers.openstack.fence import FENCED
from drivers.openstack.importing import IMPORT
from labs.openstack import CloudHandle, OpenStackLab
from tests.contract.openstack_harness import patiently
from tests.drivers.ceph.httpsource import HttpSource, http_source
from tests.drivers.openstack.test_openstack_imports_lab import MIB, cloud_of
from whimbrel.errors import Conflict, NotFound, NotReady
from whimbrel.model.vm import DiskSpec, NicSpec, Power, TargetDisk, TargetVm, VmSpec, VolumeSpec

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(500)]
CONTENT = {"vda": secrets.token_bytes(16 * MIB), "vdb": secrets.token_bytes(8 * MIB)}
KEYS = tuple(CONTENT)


class Target:
    """Two disks of a VM to be, each importing from a source of its own, and the VM; all of it goes at the end."""

    def __init__(self, cloud: OpenStackCloud, lab: CloudHandle, sources: dict[str, HttpSource]) -> None:
        assert cloud.imports is not None
        self.cloud, self.lab, self.imports, self.migration = cloud, lab, cloud.imports, secrets.token_hex(5)
        self.name = f"imported-{self.migration}"
        self.disks = {key: self._disk(key) for key in KEYS}
        for key, disk in self.disks.items():
            self.imports.begin(disk, sources[key].url, migration=self.migration)
        nic = NicSpec(key="net0", mac="fa:16:3e:00:00:5b", network="wire")
        spec = VmSpec(ref="x", name=self.name, power=Power.OFF, vcpus=1, memory_bytes=160 << 20)
        disks = tuple(self.disks.values())
        vm = TargetVm(migration=self.migration, name=self.name, source=spec, disks=disks, nics=(nic,))
        self.ref = cloud.compute.ensure_vm(vm).ref

    def _disk(self, key: str) -> TargetDisk:
        size = len(CONTENT[key])
        spec = VolumeSpec(
            name=f"{self.name}-{key}",
            pool=self.lab.volume_type,
            size_bytes=size,
            format="raw",
            migration=self.migration,
        )
        volume = patiently(lambda: self.cloud.volumes.ensure_volume(spec))
        return TargetDisk(spec=DiskSpec(key=key, size_bytes=size, format="raw", bus="virtio"), volume=volume)

    def freeze(self, *keys: str) -> None:
        """The first state of these disks, always by one name."""
        key = f"whimbrel-{self.migration}-p000"
        patiently(lambda: self.cloud.points.open(self.ref, keys, key=key, migration=self.migration))

    def fill(self, key: str) -> bool:
        return self.imports.fill(self.disks[key], should_stop=lambda: False, on_progress=lambda *_: None)

    def switch(self) -> None:
        self.cloud.serving.switch_disks(self.ref, tuple(self.disks.values()), migration=self.migration)

    def content(self, key: str) -> bytes:
        images = RbdImages(conf=str(self.lab.ceph_conf), user=self.lab.ceph_user)
        device = open_rbd(images.endpoint(self.lab.pool, f"volume-{self.disks[key].volume.location}"))
        try:
            lane, buffer = device.lane(), memoryview(bytearray(len(CONTENT[key])))
            lane.submit_read(0, buffer)
            lane.reap()
            return bytes(buffer)
        finally:
            device.close()

    def remove_vm(self) -> None:
        with contextlib.suppress(NotFound):
            patiently(lambda: self.cloud.points.forget(self.ref, migration=self.migration))
        patiently(lambda: self.cloud.compute.ensure_absent(self.ref, migration=self.migration))

    def give_up(self) -> None:
        for disk in self.disks.values():
            patiently(lambda disk=disk: self.imports.give_up(disk, migration=self.migration))  # type: ignore[misc]

    def remove_volumes(self) -> None:
        for disk in self.disks.values():
            volume = disk.volume
            patiently(
                lambda volume=volume: self.cloud.volumes.ensure_absent(  # type: ignore[misc]
                    volume.name, volume.pool, migration=self.migration
                )
            )


@pytest.fixture
def target(openstack_lab: OpenStackLab) -> Iterator[Target]:
    lab = openstack_lab.cloud("a")
    cloud = cloud_of(lab, openstack_lab.host_address)
    with contextlib.ExitStack() as stack:
        stack.callback(cloud.close)
        where = openstack_lab.host_address
        sources = {key: stack.enter_context(http_source(CONTENT[key], where)) for key in KEYS}
        made = Target(cloud, lab, sources)
        try:
            yield made
        finally:
            made.remove_vm()
            made.give_up()
            made.remove_volumes()
            assert cloud.volumes.owned(made.migration) == []


@pytest.fixture
def api(target: Target) -> Iterator[Any]:
    conn = target.lab.connect(member=True)
    yield conn
    conn.close()


def test_each_has_its_first_snapshot_before_the_server_is_made(target: Target) -> None:
    """A point that was taken of one disk only, as by an attempt that died, is taken anew of both."""
    target.freeze("vda")
    with pytest.raises(Conflict, match=f"volume-{target.disks['vdb'].volume.location} .*no snapshot"):
        target.cloud.compute.start(target.ref)
    assert target.cloud.compute.power(target.ref) is Power.OFF
    target.freeze(*KEYS)
    patiently(lambda: target.cloud.compute.start(target.ref))
    assert target.cloud.serving.served_disks(target.ref) == list(KEYS)


@pytest.mark.parametrize("first", KEYS)
def test_the_fence_stands_until_the_last_is_detached(target: Target, api: Any, first: str) -> None:
    """A switch that finds one disk incomplete has detached those before it, or none; asked again it goes on."""
    (second,) = set(KEYS) - {first}
    target.freeze(*KEYS)
    patiently(lambda: target.cloud.compute.start(target.ref))
    server = next(one for one in api.compute.servers() if one.name == target.name)
    assert target.fill(first)
    for _ in range(2):
        with pytest.raises(NotReady, match="not all of its bytes"):
            target.switch()
        assert target.cloud.serving.served_disks(target.ref) == (["vdb"] if first == "vda" else list(KEYS))
        assert api.compute.get_server(server.id).is_locked
    assert target.fill(second)
    for _ in range(2):
        target.switch()
        assert list(target.cloud.serving.served_disks(target.ref)) == []
        now = api.compute.get_server(server.id)
        assert not now.is_locked
        assert FENCED not in now.metadata
    patiently(lambda: target.cloud.compute.force_off(target.ref))
    assert {key: target.content(key) for key in KEYS} == CONTENT


def test_one_that_is_detached_already_is_given_up_with_the_other(target: Target, api: Any) -> None:
    """A rollback in the middle of the switch."""
    target.freeze(*KEYS)
    patiently(lambda: target.cloud.compute.start(target.ref))
    assert target.fill("vda")
    with pytest.raises(NotReady, match="not all of its bytes"):
        target.switch()
    target.remove_vm()
    target.give_up()
    for disk in target.disks.values():
        assert IMPORT not in api.block_storage.get_volume(disk.volume.location).metadata
    assert target.content("vda") == CONTENT["vda"]  # an ordinary volume, which goes with the others
    target.remove_volumes()
    assert target.cloud.volumes.owned(target.migration) == []
