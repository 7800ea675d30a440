"""Facts that need images, networks and hosts of a certain make: shared chains, snapshots, MTUs, other hypervisors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.libvirt import LibvirtCloud
from labs.kvm import KvmLab
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.errors import Unsupported
from whimbrel.model.facts import DiskFacts
from whimbrel.model.naming import point_key
from whimbrel.model.vm import Power

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SIZE = 1 << 20


def image(harness: LibvirtHarness, ref: str) -> Path:
    return Path(harness.cloud.compute.inspect(ref).disk("vda").location)


def facts_of_disk(harness: LibvirtHarness, ref: str) -> DiskFacts:
    return harness.cloud.source_facts(ref).disks[0]


def based_on(harness: LibvirtHarness, ref: str, base: Path) -> None:
    """Make the VM's image a linked clone of ``base``."""
    path = image(harness, ref)
    path.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path)], check=True)
    harness.conn.storagePoolLookupByName(harness.pool).refresh()


@pytest.fixture
def template(kvm_lab: KvmLab, harness: LibvirtHarness) -> Iterator[Path]:
    path = kvm_lab.pool_path("a") / f"{harness.work.name}-template.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE)], check=True)
    harness.conn.storagePoolLookupByName(harness.pool).refresh()
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("running", [True, False], ids=["on", "off"])
def test_linked_clones_share_the_template_and_not_the_image(
    harness: LibvirtHarness, template: Path, running: bool
) -> None:
    clones = [harness.make_vm([(SIZE, "qcow2")]) for _ in range(2)]
    alone = harness.make_vm([(SIZE, "qcow2")])
    for ref in clones:
        based_on(harness, ref, template)
        if running:
            harness.domain(ref).create()
    names = [harness.cloud.compute.inspect(ref).name for ref in clones]
    facts = facts_of_disk(harness, clones[0])
    assert harness.cloud.compute.inspect(clones[0]).disk("vda").backing_chain == (str(template),)
    assert (facts.chain_shared_with, facts.image_shared_with) == ((names[1],), ())
    assert facts.chain_complete
    assert (facts_of_disk(harness, alone).chain_shared_with, facts_of_disk(harness, alone).image_shared_with) == (
        (),
        (),
    )


def test_one_image_in_two_vms_is_named(harness: LibvirtHarness) -> None:
    one, two = (harness.make_vm([(SIZE, "qcow2")]) for _ in range(2))
    xml = harness.domain(two).XMLDesc()
    shared, own = image(harness, one), image(harness, two)
    harness.conn.defineXML(xml.replace(str(own), str(shared)))
    name = harness.cloud.compute.inspect(two).name
    facts = facts_of_disk(harness, one)
    assert (facts.image_shared_with, facts.chain_shared_with) == ((name,), ())


def test_an_image_missing_below_is_told(harness: LibvirtHarness, template: Path) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")])
    based_on(harness, ref, template)
    template.unlink()
    harness.conn.storagePoolLookupByName(harness.pool).refresh()
    assert not facts_of_disk(harness, ref).chain_complete


def test_internal_snapshots_that_libvirt_did_not_make(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "qcow2"), (SIZE, "raw")])
    for name in ("before", "after"):
        subprocess.run(["qemu-img", "snapshot", "-q", "-c", name, str(image(harness, ref))], check=True)
    harness.domain(ref).create()
    disks = harness.cloud.source_facts(ref).disks
    assert [disk.internal_snapshots for disk in disks] == [2, 0]


def test_mtus_of_the_card_and_of_the_network(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "raw")])
    if harness.network == "user":
        pytest.skip("this machine's kernel has no bridges")
    assert harness.network not in harness.cloud.source_facts(ref).network_mtus
    xml = harness.domain(ref).XMLDesc().replace("<model type='virtio'/>", "<model type='virtio'/><mtu size='1400'/>", 1)
    harness.conn.defineXML(xml)
    assert harness.cloud.source_facts(ref).network_mtus == {harness.network: 1400}


def test_a_connection_that_may_only_look_cannot_act(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "raw")])
    assert harness.cloud.source_facts(ref).can_act
    looking = LibvirtCloud("lab", uri=harness.fresh_cloud()._connection.uri, read_only=True)
    facts = looking.source_facts(ref)
    assert (facts.can_act, facts.vm is not None) == (False, True)
    looking.close()


def test_another_hypervisor_is_looked_at_without_qemus_monitor(migration: str) -> None:
    """libvirt's own test driver stands for a host that is not QEMU: no monitor, no NBD, other words."""
    cloud = LibvirtCloud("other", uri="test:///default")
    able = cloud.capabilities()
    assert (able.roles, able.live_points, able.guest_agent) == (frozenset({"source"}), False, False)
    assert able.version.startswith("TEST ")
    (vm,) = cloud.compute.inventory()
    assert (vm.name, vm.power) == ("test", Power.RUNNING)
    facts = cloud.source_facts("test")
    assert facts.reachable
    assert facts.capabilities == able
    assert facts.vm is not None
    assert (facts.running_job, facts.rebuild_changes) == (None, ())
    assert cloud.target_facts().capabilities == able
    with pytest.raises(Unsupported):
        cloud.points.open(vm.ref, [], key=point_key(migration, 1), migration=migration)
    cloud.compute.force_off(vm.ref)
    assert list(cloud.points.owned(vm.ref, migration)) == []
    cloud.points.close(vm.ref, point_key(migration, 1), migration=migration)
    cloud.points.forget(vm.ref, migration=migration)
    cloud.close()
