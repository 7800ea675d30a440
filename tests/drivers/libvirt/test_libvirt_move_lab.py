"""A real guest moved from cloud "a" to cloud "b" through the driver alone, and what the facts say of it on the way."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from labs.kvm import DiskSpec, KvmLab, LabGuest
from tests.contract.blockio import changed_of, opened, read_device, read_point, write_point
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.errors import Conflict
from whimbrel.model.naming import point_key, volume_name, writer_key
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.vm import Power, TargetDisk, TargetVm, VmSpec, VolumeRef, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

Make = Callable[..., LibvirtHarness]
SIZE = 16 << 20


def copy_changes(point: OpenPoint, session: WriterSession) -> int:
    """One delta round; returns the bytes copied."""
    copied = 0
    for disk in point.disks:
        with opened(disk.endpoint) as source:
            for extent in changed_of(disk):
                write_point(session.disk(disk.key), extent.start, read_device(source, extent.start, extent.length))
                copied += extent.length
    return copied


def volumes_for(target: LibvirtHarness, vm: VmSpec, migration: str) -> dict[str, VolumeRef]:
    return {
        disk.key: target.cloud.volumes.ensure_volume(
            VolumeSpec(
                name=volume_name(vm.name, disk.key, migration),
                pool="default",
                size_bytes=disk.size_bytes,
                format=disk.format,
                migration=migration,
            )
        )
        for disk in vm.disks
    }


def wait_off(harness: LibvirtHarness, ref: str) -> None:
    deadline = time.monotonic() + 120
    while harness.cloud.compute.power(ref) is not Power.OFF:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_guest_moves_and_boots(
    make_harness: Make, kvm_lab: KvmLab, lab_guest: Callable[..., LabGuest], migration: str
) -> None:
    source, target = make_harness("a"), make_harness("b")
    guest = lab_guest("a", disks=(DiskSpec(size_bytes=SIZE), DiskSpec(size_bytes=SIZE, format="qcow2")), rate=10)
    guest.start("a")
    vm = source.cloud.compute.inspect(guest.name)
    assert (vm.power, [disk.trackable for disk in vm.disks]) == (Power.RUNNING, [True, True])
    volumes = volumes_for(target, vm, migration)
    keys = [disk.key for disk in vm.disks]
    session = target.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)

    base = source.cloud.points.open(vm.ref, keys, key=point_key(migration, 1), migration=migration)
    for disk in base.disks:
        write_point(session.disk(disk.key), 0, read_point(disk))
    source.cloud.points.close(vm.ref, base.key, migration=migration)
    time.sleep(1)
    delta = source.cloud.points.open(vm.ref, keys, key=point_key(migration, 2), since=base.token, migration=migration)
    facts = source.cloud.source_facts(vm.ref)
    assert facts.running_job is None, "our own job is no obstacle"
    assert [disk.stale_tracking for disk in facts.disks] == [(), ()]
    assert set(source.cloud.points.owned(vm.ref, migration)) == {base.key, delta.key}
    assert 0 < copy_changes(delta, session) < 2 * SIZE
    source.cloud.points.close(vm.ref, delta.key, migration=migration)

    source.cloud.compute.request_stop(vm.ref)
    source.cloud.compute.request_stop(vm.ref)
    wait_off(source, vm.ref)
    final = source.cloud.points.open(vm.ref, keys, key=point_key(migration, 3), since=delta.token, migration=migration)
    copy_changes(final, session)
    source.cloud.points.close(vm.ref, final.key, migration=migration)
    target.cloud.volumes.close_writer(session.key)
    for key, volume in volumes.items():
        assert target.read_volume(volume) == source.read_disk(vm.ref, key)

    wanted = TargetVm(
        migration=migration,
        name=vm.name,
        source=vm,
        disks=tuple(TargetDisk(spec=disk, volume=volumes[disk.key]) for disk in vm.disks),
        nics=tuple(nic.model_copy(update={"network": target.network}) for nic in vm.nics),
    )
    made = target.cloud.compute.ensure_vm(wanted)
    assert target.cloud.compute.ensure_vm(wanted) == made
    assert (made.ref, made.power, made.owner_migration) == (vm.ref, Power.OFF, migration)
    assert [nic.mac for nic in made.nics] == [nic.mac for nic in vm.nics]
    target.cloud.compute.start(made.ref, paused=True)
    assert target.cloud.compute.power(made.ref) is Power.PAUSED
    reverse = target.cloud.points.open(made.ref, keys, key=point_key(migration, 4), migration=migration)
    target.cloud.points.close(made.ref, reverse.key, migration=migration)
    target.cloud.compute.resume(made.ref)
    guest.ping()
    assert guest.boot_count() == 2
    assert "boot" in (target.cloud.guest.console_tail(made.ref, 1 << 16) or "").lower()
    target.cloud.points.forget(made.ref, migration=migration)
    source.cloud.points.forget(vm.ref, migration=migration)
    assert list(target.cloud.points.owned(made.ref, migration)) == []
    assert list(source.cloud.points.owned(vm.ref, migration)) == []
    assert source.cloud.compute.inspect(vm.ref).definition_digest == vm.definition_digest
    target.cloud.compute.release_tag(made.ref, migration=migration)
    with pytest.raises(Conflict):
        target.cloud.compute.ensure_absent(made.ref, migration=migration)
    assert target.cloud.target_facts().leftovers == ()


def test_facts_name_what_is_in_the_way(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2"), (SIZE, "raw"), (SIZE, "qcow2-v2")], running=True)
    foreign = harness.make_vm([(SIZE, "qcow2")], running=True)
    facts = harness.cloud.source_facts(ref)
    assert facts.vm is not None
    assert [(disk.format, disk.trackable) for disk in facts.vm.disks] == [
        ("qcow2", True),
        ("raw", False),
        ("qcow2-v2", False),
    ]
    assert facts.hypervisor_version.startswith("QEMU ")
    with harness.foreign_job(foreign):
        assert harness.cloud.source_facts(foreign).running_job
    assert harness.cloud.source_facts(foreign).running_job is None
    token = harness.add_foreign_token(foreign)
    assert harness.cloud.source_facts(foreign).disks[0].foreign_tracking == (token,)
    told = harness.cloud.target_facts()
    assert {ref, foreign} <= set(told.vm_names.values())
    assert told.memory_total_bytes
    assert told.memory_free_bytes
    assert "x86_64" in told.archs
    assert any(machine.startswith("pc-q35") for machine in told.machines)
    assert "virtio" in told.disk_buses
    assert told.clock is not None
    assert told.macs[facts.vm.nics[0].mac] == facts.vm.name
    assert harness.cloud.networks.mac_owners([facts.vm.nics[0].mac.upper()]) == {facts.vm.nics[0].mac: facts.vm.name}


def test_mixed_disks_in_one_point(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2"), (SIZE, "raw"), (SIZE, "qcow2-v2")], running=True)
    keys = ["vda", "vdb", "vdc"]
    first = harness.cloud.points.open(ref, keys, key=point_key(migration, 1), migration=migration)
    assert first.token == first.key
    harness.cloud.points.close(ref, first.key, migration=migration)
    for key in keys:
        harness.guest_write(ref, key, 65536, key.encode() * 50)
    second = harness.cloud.points.open(ref, keys, key=point_key(migration, 2), since=first.token, migration=migration)
    assert [disk.tracked for disk in second.disks] == [True, False, False]
    for disk in second.disks:
        assert read_point(disk) == harness.read_disk(ref, disk.key)
    harness.cloud.points.close(ref, second.key, migration=migration)
    only = harness.cloud.points.open(ref, ["vdb"], key=point_key(migration, 3), migration=migration)
    assert only.token is None
    assert harness.cloud.points.open(ref, ["vdb"], key=point_key(migration, 3), migration=migration).disks == only.disks
    harness.cloud.points.close(ref, only.key, migration=migration)
    assert not [name for name in harness.files() if name.startswith("whimbrel-")]
