"""Volumes imported on the lab's real Cinder, Nova and Ceph: the ports call by call, and what the precheck finds."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.precheck import PrecheckActivities
from activities.probe_import import ImportProbe
from drivers.ceph import RbdImages, RbdImports, open_rbd
from drivers.memory import MemoryCloud, Scenario
from drivers.openstack import OpenStackCloud
from drivers.openstack.fence import FENCED
from drivers.openstack.importing import IMPORT
from labs.openstack import CloudHandle, OpenStackLab
from tests.contract.openstack_harness import patiently
from tests.drivers.ceph.httpsource import HttpSource, http_source
from tests.drivers.openstack.test_openstack_project_lab import Two
from whimbrel.contracts.activity_io import PrecheckRequest
from whimbrel.dataplane import register_opener
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported
from whimbrel.model.finding import Finding
from whimbrel.model.plan import VmPlan
from whimbrel.model.vm import DiskSpec, NicSpec, Power, TargetDisk, TargetVm, VmSpec, VolumeSpec
from whimbrel.stream import launch
from worker import stop_server

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(500)]
MIB = 1 << 20
SIZE = 16 * MIB
CONTENT = secrets.token_bytes(SIZE)
register_opener("rbd", open_rbd)


@pytest.fixture
def lab(openstack_lab: OpenStackLab) -> CloudHandle:
    return openstack_lab.cloud("a")


def cloud_of(lab: CloudHandle, gateway_address: str, **pools: str) -> OpenStackCloud:
    access = {"conf": str(lab.ceph_conf), "user": lab.ceph_user}
    return OpenStackCloud(
        "lab",
        clouds_yaml_name="a-member",
        config_file=lab.clouds_yaml,
        images=RbdImages(**access),
        pools=pools or {lab.volume_type: lab.pool},
        live=RbdImports(**access),
        gateway_address=gateway_address,
    )


@pytest.fixture
def cloud(lab: CloudHandle, openstack_lab: OpenStackLab) -> Iterator[OpenStackCloud]:
    made = cloud_of(lab, openstack_lab.host_address)
    yield made
    made.close()


@pytest.fixture
def source(openstack_lab: OpenStackLab) -> Iterator[HttpSource]:
    with http_source(CONTENT, openstack_lab.host_address) as made:
        yield made


@pytest.fixture
def api(lab: CloudHandle) -> Iterator[Any]:
    conn = lab.connect(member=True)
    yield conn
    conn.close()


class Target:
    """One disk of a VM to be, and the VM; all of it goes at the end."""

    def __init__(self, cloud: OpenStackCloud, lab: CloudHandle) -> None:
        self.cloud, self.migration = cloud, secrets.token_hex(5)
        self.name = f"imported-{self.migration}"
        spec = VolumeSpec(name=self.name, pool=lab.volume_type, size_bytes=SIZE, format="raw", migration=self.migration)
        self.volume = patiently(lambda: cloud.volumes.ensure_volume(spec))
        traits = DiskSpec(key="vda", size_bytes=SIZE, format="raw", bus="virtio")
        self.disk = TargetDisk(spec=traits, volume=self.volume)
        self.ref = ""

    def begin(self, source: HttpSource) -> None:
        assert self.cloud.imports is not None
        self.cloud.imports.begin(self.disk, source.url, migration=self.migration)

    def announce(self) -> None:
        nic = NicSpec(key="net0", mac="fa:16:3e:00:00:5a", network="wire")
        spec = VmSpec(ref="x", name=self.name, power=Power.OFF, vcpus=1, memory_bytes=160 << 20)
        vm = TargetVm(migration=self.migration, name=self.name, source=spec, disks=(self.disk,), nics=(nic,))
        self.ref = self.cloud.compute.ensure_vm(vm).ref

    def freeze(self) -> None:
        key = f"whimbrel-{self.migration}-p000"
        patiently(lambda: self.cloud.points.open(self.ref, ("vda",), key=key, migration=self.migration))

    def start(self) -> None:
        patiently(lambda: self.cloud.compute.start(self.ref))

    def fill(self) -> bool:
        assert self.cloud.imports is not None
        return self.cloud.imports.fill(self.disk, should_stop=lambda: False, on_progress=lambda *_: None)

    def give_up(self) -> None:
        assert self.cloud.imports is not None
        self.cloud.imports.give_up(self.disk, migration=self.migration)

    def remove(self) -> None:
        if self.ref:
            with contextlib.suppress(NotFound):
                patiently(lambda: self.cloud.points.forget(self.ref, migration=self.migration))
            patiently(lambda: self.cloud.compute.ensure_absent(self.ref, migration=self.migration))
        patiently(self.give_up)
        patiently(lambda: self.cloud.volumes.ensure_absent(self.name, self.volume.pool, migration=self.migration))


@pytest.fixture
def target(cloud: OpenStackCloud, lab: CloudHandle, source: HttpSource) -> Iterator[Target]:
    made = Target(cloud, lab)
    try:
        yield made
    finally:
        source.failing = False
        source.go_on()
        made.remove()
        assert cloud.volumes.owned(made.migration) == []


def test_the_ports_call_by_call(
    target: Target, source: HttpSource, cloud: OpenStackCloud, lab: CloudHandle, api: Any
) -> None:
    """Each twice; the server is locked until the switch, and its image is then one as Cinder makes them."""
    for _ in range(2):
        target.begin(source)
    target.announce()
    for _ in range(2):
        target.freeze()
    for _ in range(2):
        target.start()
    server = next(one for one in api.compute.servers() if one.name == target.name)
    assert server.is_locked
    assert server.metadata[FENCED] == target.migration
    acts: tuple[Callable[[], Any], ...] = (
        lambda: api.compute.stop_server(server.id),
        lambda: api.compute.reboot_server(server.id, "HARD"),
        lambda: api.compute.delete_server(server.id),
        lambda: api.compute.shelve_server(server.id),
        lambda: api.compute.resize_server(server.id, api.compute.find_flavor("lab.medium").id),
        lambda: api.compute.create_volume_attachment(server.id, volume_id=target.volume.location),
    )
    for act in acts:
        with pytest.raises(Exception, match="locked"):
            act()
    assert cloud.serving.served_disks(target.ref) == ["vda"]
    with pytest.raises(NotReady, match="not all of its bytes"):
        cloud.serving.switch_disks(target.ref, (target.disk,), migration=target.migration)
    with pytest.raises(NotReady, match="attached"):
        target.give_up()
    api.compute.unlock_server(server.id)  # by its owner: the fence is set again by whoever looks
    for _ in range(2):
        assert target.fill()
    assert api.compute.get_server(server.id).is_locked
    with pytest.raises(Conflict, match="not made by"):
        cloud.serving.switch_disks(target.ref, (target.disk,), migration="0123456789")
    for _ in range(2):
        cloud.serving.switch_disks(target.ref, (target.disk,), migration=target.migration)
    assert list(cloud.serving.served_disks(target.ref)) == []
    now = api.compute.get_server(server.id)
    assert not now.is_locked
    assert FENCED not in now.metadata
    assert IMPORT not in api.block_storage.get_volume(target.volume.location).metadata
    target.give_up()  # detached: left alone
    with pytest.raises(NotFound, match="not being imported"):
        target.fill()
    asked = len(source.fetched)
    patiently(lambda: cloud.compute.force_off(target.ref))
    images = RbdImages(conf=str(lab.ceph_conf), user=lab.ceph_user)
    device = open_rbd(images.endpoint(lab.pool, f"volume-{target.volume.location}"))
    try:
        lane, buffer = device.lane(), memoryview(bytearray(SIZE))
        lane.submit_read(0, buffer)
        lane.reap()
        assert bytes(buffer) == CONTENT
    finally:
        device.close()
    assert len(source.fetched) == asked


def test_a_stop_and_a_start_of_ours_pass_the_fence(
    target: Target, source: HttpSource, cloud: OpenStackCloud, api: Any
) -> None:
    target.begin(source)
    target.announce()
    target.freeze()
    target.start()
    patiently(lambda: cloud.compute.force_off(target.ref))
    server = next(one for one in api.compute.servers() if one.name == target.name)
    assert server.is_locked
    target.start()
    assert cloud.compute.power(target.ref) is Power.RUNNING
    assert api.compute.get_server(server.id).is_locked


def test_no_server_is_started_on_an_import_without_its_first_snapshot(
    target: Target, source: HttpSource, cloud: OpenStackCloud
) -> None:
    target.begin(source)
    target.announce()
    with pytest.raises(Conflict, match="no snapshot"):
        cloud.compute.start(target.ref)
    assert cloud.compute.power(target.ref) is Power.OFF


def test_whose_volume_it_is_and_what_it_is_asked_for(
    target: Target, source: HttpSource, cloud: OpenStackCloud, api: Any
) -> None:
    assert cloud.imports is not None
    target.give_up()  # never begun
    with pytest.raises(Conflict, match="another migration"):
        cloud.imports.begin(target.disk, source.url, migration="0123456789")
    nowhere = target.disk.model_copy(update={"volume": target.volume.model_copy(update={"location": "0" * 8})})
    with pytest.raises(NotFound):
        cloud.imports.begin(nowhere, source.url, migration=target.migration)
    cloud.imports.give_up(nowhere, migration=target.migration)
    with pytest.raises(Unsupported):
        cloud.serving.local_path(target.volume)
    target.begin(source)
    target.announce()
    source.hold()  # a listing does not wait for a source that is away
    began = time.monotonic()
    assert next(vm for vm in cloud.compute.inventory() if vm.name == target.name).disks[0].size_bytes == SIZE
    assert cloud.compute.inspect(target.ref).disks[0].size_bytes == SIZE
    assert time.monotonic() - began < 30
    told = cloud.source_facts(target.ref).rebuild_blockers
    assert any("is being imported" in line for line in told), told
    source.go_on()
    target.give_up()  # another migration's is left alone, ours is gone; then it may be begun again
    assert IMPORT not in api.block_storage.get_volume(target.volume.location).metadata
    target.begin(source)


# --- the precheck


@pytest.fixture
def here() -> Iterator[MemoryCloud]:
    name = f"osimport-{secrets.token_hex(4)}"
    Scenario(name).add_vm("web", disks=[(MIB, "raw")], memory_bytes=160 << 20, vcpus=1)
    yield MemoryCloud(name)
    MemoryCloud.reset(name)


def prechecked(target: OpenStackCloud, here: MemoryCloud, state_dir: Path) -> dict[str, Finding]:
    plan = VmPlan(
        plan="p",
        vm="web",
        source="here",
        target="lab",
        mode="streaming",
        networks={"*": "wire"},
        storage={"*": "rbd-a"},
    )
    probe = ImportProbe(state_dir, state_dir / "s", launch, stop_server)
    request = PrecheckRequest(plan=plan, migration=secrets.token_hex(5))
    answer = ActivityEnvironment().run(PrecheckActivities(Two(here, target), state_dir, probe).run, request)
    target.close()
    assert target.volumes.owned(request.migration) == []
    target.close()
    assert not list((state_dir / "streams").glob("*"))
    return {finding.rule: finding for finding in answer.result.findings}


def test_the_precheck_imports_a_volume(cloud: OpenStackCloud, here: MemoryCloud, tmp_path: Path) -> None:
    found = prechecked(cloud, here, tmp_path)
    assert found["stream.import"].outcome == "ok", found["stream.import"].line
    assert found["stream.capable"].outcome == "ok"


def test_the_precheck_sees_that_cinder_does_not_reach_the_gateway(
    lab: CloudHandle, here: MemoryCloud, tmp_path: Path
) -> None:
    """127.0.0.1 is this mover to us, and another machine to the lab's services."""
    told = prechecked(cloud_of(lab, "127.0.0.1"), here, tmp_path)["stream.import"]
    assert told.blocks
    assert "could not be imported" in told.found
    assert "small last delta" in told.action


@pytest.mark.parametrize(
    ("address", "pools", "says"),
    [("203.0.113.7", {}, "cannot listen"), ("", {"other": "shared"}, "no Ceph pool is named")],
)
def test_the_precheck_says_why_the_way_is_closed(
    cloud: OpenStackCloud,
    lab: CloudHandle,
    here: MemoryCloud,
    tmp_path: Path,
    address: str,
    pools: dict[str, str],
    says: str,
) -> None:
    assert cloud.imports is not None
    target = cloud_of(lab, address or cloud.imports.gateway_address, **pools)
    told = prechecked(target, here, tmp_path)["stream.import"]
    assert told.blocks
    assert says in told.found


def test_without_a_gateway_address_the_mode_is_refused(lab: CloudHandle, here: MemoryCloud, tmp_path: Path) -> None:
    access = {"conf": str(lab.ceph_conf), "user": lab.ceph_user}
    target = OpenStackCloud(
        "lab",
        clouds_yaml_name="a-member",
        config_file=lab.clouds_yaml,
        images=RbdImages(**access),
        pools={lab.volume_type: lab.pool},
        live=RbdImports(**access),
    )
    told = prechecked(target, here, tmp_path)["stream.capable"]
    assert told.blocks
    assert "no gateway_address" in told.found
    assert "KVM" in told.action
