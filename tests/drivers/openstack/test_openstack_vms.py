"""Servers and announced VMs as the model shows them, from the SDK's own fakes: no cloud is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2.flavor import Flavor
from openstack.compute.v2.server import Server
from openstack.network.v2.network import Network
from openstack.network.v2.port import Port
from openstack.test import fakes

from drivers.ceph import RbdImages
from drivers.openstack import flavors, marks, vms
from drivers.openstack.backing import Backing
from drivers.openstack.inventory import AnnouncedDisk, AnnouncedVm, Inventory, announced
from whimbrel.errors import Conflict, InvalidPlan, NotFound, Unsupported
from whimbrel.model.vm import Power

GIB = 1 << 30


class KnownSizes(RbdImages):
    """Images of 2 MiB each, without a cluster."""

    def sizes(self, images: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        return dict.fromkeys(images, 2 << 20)


def fake(kind: type[Any], **values: Any) -> Any:
    return fakes.generate_fake_resource(kind, **values)


def flavor(name: str, vcpus: int, ram: int, disk: int = 0) -> Any:
    return fake(Flavor, name=name, vcpus=vcpus, ram=ram, disk=disk)


def server(**values: Any) -> Any:
    given = {
        "name": "web",
        "vm_state": "active",
        "power_state": 1,
        "task_state": None,
        "status": "ACTIVE",
        "metadata": {},
        "flavor": {"original_name": "small", "vcpus": 2, "ram": 512},
    }
    return fake(Server, **{**given, **values})


def volume(server_id: str | None, device: str = "/dev/vda", **values: Any) -> Any:
    attachments = [{"server_id": server_id, "device": device}] if server_id else []
    given = {"volume_type": "fast", "size": 1, "metadata": {}, "attachments": attachments, "volume_image_metadata": {}}
    return fake(Volume, **{**given, **values})


def seen_of(*things: Any) -> Inventory:
    found = Inventory()
    for thing in things:
        match thing:
            case Server():
                found.servers[thing.id] = thing
            case Volume():
                found.volumes[thing.id] = thing
                plan = announced(thing)
                if plan is not None:
                    found.announced[plan.ref] = plan
            case Port():
                found.ports.append(thing)
            case Network():
                found.networks[thing.id] = thing
            case Flavor():
                found.flavors[thing.id] = thing
    return found


BACKING = Backing(KnownSizes(), {"fast": "volumes-fast"})


@pytest.mark.parametrize(
    ("state", "power", "task", "expected"),
    [
        ("active", 1, None, Power.RUNNING),
        ("active", 1, "powering-off", Power.RUNNING),
        ("stopped", 4, None, Power.OFF),
        ("stopped", 1, None, Power.UNKNOWN),
        ("stopped", 4, "powering-on", Power.UNKNOWN),
        ("paused", 3, None, Power.PAUSED),
        ("suspended", 4, None, Power.SUSPENDED),
        ("shelved_offloaded", 4, None, Power.OFF),
        ("error", 0, None, Power.CRASHED),
        ("building", 0, "spawning", Power.UNKNOWN),
    ],
)
def test_off_is_only_what_is_confirmed(state: str, power: int, task: str | None, expected: Power) -> None:
    assert vms.power_of(server(vm_state=state, power_state=power, task_state=task)) is expected


def test_a_server_tells_disks_by_device_and_nics_by_age() -> None:
    web, net = server(), fake(Network, name="blue")
    second = volume(web.id, "/dev/vdb", volume_type="slow", size=3)
    first = volume(web.id, "/dev/vda", volume_image_metadata={"hw_disk_bus": "scsi", "hw_firmware_type": "uefi"})
    late = fake(
        Port, device_id=web.id, network_id=net.id, mac_address="FA:16:3E:00:00:02", created_at="2026-02", fixed_ips=[]
    )
    early = fake(
        Port,
        device_id=web.id,
        network_id=net.id,
        mac_address="fa:16:3e:00:00:01",
        created_at="2026-01",
        fixed_ips=[{"ip_address": "10.0.0.5", "subnet_id": "s"}],
    )
    spec = vms.spec(seen_of(web, net, second, first, late, early), "web", BACKING)
    assert (spec.ref, spec.vcpus, spec.memory_bytes, spec.firmware) == (web.id, 2, 512 << 20, "uefi")
    assert [(disk.key, disk.location, disk.bus, disk.trackable) for disk in spec.disks] == [
        ("vda", first.id, "scsi", True),
        ("vdb", second.id, "scsi", False),
    ]
    assert [disk.size_bytes for disk in spec.disks] == [2 << 20, 3 * GIB], "the real size where it can be seen"
    assert [nic.mac for nic in spec.nics] == ["fa:16:3e:00:00:01", "fa:16:3e:00:00:02"]
    assert (spec.nics[0].network, spec.nics[0].addresses) == ("blue", ("10.0.0.5",))


def plan_for(boot: Any, size: Any, port: Any, migration: str | None = "0123456789") -> AnnouncedVm:
    return AnnouncedVm(
        ref=boot.id,
        name="web",
        migration=migration,
        flavor=size.id,
        ports=(("net0", port.id),),
        disks=(AnnouncedDisk(key="sda", volume=boot.id, bus="scsi"),),
        metadata={"role": "front " * 100},
    )


def test_an_announced_vm_is_the_same_before_and_after_its_server_is_made() -> None:
    net, size, boot = fake(Network, name="blue"), flavor("small", 2, 512), volume(None)
    port = fake(Port, network_id=net.id, mac_address="fa:16:3e:00:00:01", fixed_ips=[], device_id="")
    plan = plan_for(boot, size, port)
    boot = volume(None, id=boot.id, metadata=marks.pieces(marks.PLAN, plan.model_dump_json()))
    before = vms.spec(seen_of(net, size, boot, port), "web", BACKING)
    assert (before.ref, before.power, before.owner_migration) == (boot.id, Power.OFF, "0123456789")
    made = server(metadata={marks.REF: boot.id, marks.MIGRATION: "0123456789", **plan.metadata})
    boot = volume(made.id, "/dev/vda", id=boot.id, metadata=boot.metadata)
    seen = seen_of(net, size, boot, port, made)
    after = vms.spec(seen, boot.id, BACKING)
    assert after.power is Power.RUNNING
    assert after.model_copy(update={"power": Power.OFF}) == before
    assert seen.refs() == [boot.id]
    assert seen.find(made.id)[0] == seen.find("web")[0] == boot.id


def _plan(ports: int, migration: str | None = "0123456789") -> AnnouncedVm:
    return AnnouncedVm(
        ref="vol-1",
        name="web",
        migration=migration,
        flavor="1",
        ports=tuple((f"net{number}", f"port-{number}" * 3) for number in range(ports)),
        disks=(AnnouncedDisk(key="vda", volume="vol-1", bus="virtio"),),
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_a_plan_whose_writer_died_is_the_new_one_or_none(before: int, after: int, written: int, removed: int) -> None:
    """All pieces are written in one call, those of a longer plan removed one by one; a removal may stop anywhere."""
    old = marks.pieces(marks.PLAN, _plan(before).model_dump_json())
    new = marks.pieces(marks.PLAN, _plan(after, None).model_dump_json())
    spare = sorted(set(old) - set(new))
    metadata = {**old, **new}
    for key in spare[:written]:
        del metadata[key]
    assert announced(volume(None, metadata=metadata)) == _plan(after, None)
    for key in sorted(metadata)[: removed or 1]:
        del metadata[key]
    assert announced(volume(None, metadata=metadata)) is None


def test_names_that_fit_several_or_none() -> None:
    seen = seen_of(server(), server())
    with pytest.raises(Conflict):
        seen.find("web")
    with pytest.raises(NotFound):
        seen.find("db")


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=2000))
def test_long_texts_survive_short_metadata(text: str) -> None:
    found = marks.pieces(marks.PLAN, text)
    assert all(len(value) <= 255 for value in found.values())
    shuffled = list(found.items())
    random.Random(1).shuffle(shuffled)
    assert marks.joined(marks.PLAN, {"other": "x", **dict(shuffled)}) == text


@pytest.mark.parametrize(("size", "gib"), [(1, 1), (GIB, 1), (GIB + 1, 2), (3 * GIB, 3)])
def test_cinder_is_asked_for_whole_gib(size: int, gib: int) -> None:
    assert marks.whole_gib(size) == gib


def test_the_flavor_that_fits() -> None:
    known = [flavor("tiny", 1, 256), flavor("fit", 2, 512), flavor("twin", 2, 512), flavor("disk", 2, 512, 20)]
    known += [flavor("big", 4, 4096)]
    assert flavors.fit(known, vcpus=2, memory_bytes=512 << 20).name == "fit"
    assert flavors.fit(known, vcpus=2, memory_bytes=512 << 20, name="twin").name == "twin"
    assert flavors.fit(known, vcpus=1, memory_bytes=(256 << 20) + 1).name in {"fit", "twin"}
    assert flavors.fit(known, vcpus=3, memory_bytes=1).name == "big"
    with pytest.raises(InvalidPlan):
        flavors.fit(known, vcpus=8, memory_bytes=1)


def test_volumes_of_other_types_are_not_reached() -> None:
    slow = volume(None, volume_type="slow")
    assert not BACKING.reaches(slow)
    with pytest.raises(Unsupported):
        BACKING.image(slow)
    with pytest.raises(Unsupported):
        _ = Backing(None, {}).images
    assert BACKING.image(volume(None, id="7")) == ("volumes-fast", "volume-7")
