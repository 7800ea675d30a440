"""Servers, and VMs that are announced, as ``VmSpec``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from drivers.openstack import marks
from drivers.openstack.backing import Backing
from drivers.openstack.inventory import AnnouncedVm, Inventory
from whimbrel.model.vm import DiskSpec, Firmware, NicSpec, Power, VmSpec

KIND = "openstack"
BY_STATE = {
    "active": Power.RUNNING,
    "paused": Power.PAUSED,
    "suspended": Power.SUSPENDED,
    "stopped": Power.OFF,
    "shelved": Power.OFF,
    "shelved_offloaded": Power.OFF,
    "rescued": Power.RUNNING,
    "resized": Power.RUNNING,
}
SHUTDOWN = 4
CRASHED = 6


def power_of(server: Any | None) -> Power:
    """Off is only what Nova calls stopped and the hypervisor confirmed; a VM without a server is off."""
    if server is None:
        return Power.OFF
    if server.vm_state == "error":
        return Power.CRASHED
    power = BY_STATE.get(server.vm_state or "", Power.UNKNOWN)
    if power is Power.OFF and (server.task_state or server.power_state not in {SHUTDOWN, CRASHED, 0}):
        return Power.UNKNOWN
    return power


def spec(seen: Inventory, vm: str, backing: Backing, sizes: Mapping[str, int] | None = None) -> VmSpec:
    """One VM. ``sizes`` are the volumes' real ones, by id; asked for when not given. Raises NotFound, Conflict."""
    ref, server, plan = seen.find(vm)
    volumes = seen.disks_of(server, plan)
    if sizes is None:
        sizes = backing.sizes([volume for _, volume in volumes])
    image = dict((volumes[0][1].volume_image_metadata or {}) if volumes else {})
    vcpus, memory_mib, flavor = _shape(seen, server, plan)
    name = server.name if server is not None else plan.name if plan is not None else ""
    nics = [_nic(seen, key, port) for key, port in seen.ports_of(server, plan)]
    bus = str(image.get("hw_disk_bus") or "virtio")
    buses = {disk.key: disk.bus for disk in plan.disks} if plan is not None else {}
    disks = [
        DiskSpec(
            key=key,
            size_bytes=sizes.get(volume.id, int(volume.size or 0) << 30),
            format="raw",
            bus=buses.get(key, bus),
            pool=volume.volume_type,
            location=volume.id,
            boot_order=1 if number == 0 else None,
            shareable=bool(volume.is_multiattach),
            trackable=backing.reaches(volume),
        )
        for number, (key, volume) in enumerate(volumes)
    ]
    metadata = user_metadata(server.metadata if server is not None else plan.metadata if plan is not None else {})
    core = {
        "name": name,
        "flavor": {"name": flavor, "vcpus": vcpus, "memory_mib": memory_mib},
        "metadata": metadata,
        "disks": [disk.location for disk in disks],
        "nics": [[nic.mac, nic.network, list(nic.addresses)] for nic in nics],
        "image": {key: value for key, value in sorted(image.items()) if key.startswith(("hw_", "os_"))},
    }
    definition = json.dumps(core, sort_keys=True)
    return VmSpec(
        ref=ref,
        name=name,
        power=power_of(server),
        vcpus=vcpus,
        memory_bytes=memory_mib << 20,
        arch=str(image.get("hw_architecture") or "x86_64"),
        machine=str(image.get("hw_machine_type") or ""),
        firmware=firmware_of(image),
        disks=tuple(disks),
        nics=tuple(nics),
        size_name=flavor,
        definition=definition,
        definition_kind=KIND,
        definition_digest=hashlib.sha256(definition.encode()).hexdigest(),
        owner_migration=owner(server, plan),
    )


def owner(server: Any | None, plan: AnnouncedVm | None) -> str | None:
    """The migration that made the VM and has not handed it over."""
    if server is not None:
        found = server.metadata.get(marks.MIGRATION)
        return str(found) if found else None
    return plan.migration if plan is not None else None


def user_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is not ours."""
    return {key: value for key, value in sorted(metadata.items()) if not key.startswith(marks.OURS)}


def firmware_of(image: Mapping[str, Any]) -> Firmware:
    """From the properties of the image that the first volume was made of."""
    if image.get("hw_firmware_type") != "uefi":
        return "bios"
    return "uefi-secure" if image.get("os_secure_boot") == "required" else "uefi"


def _shape(seen: Inventory, server: Any | None, plan: AnnouncedVm | None) -> tuple[int, int, str]:
    if server is not None:
        flavor = server.flavor
        return int(flavor.vcpus or 0), int(flavor.ram or 0), str(flavor.original_name or flavor.name or flavor.id)
    known = seen.flavors.get(plan.flavor) if plan is not None else None
    return (int(known.vcpus), int(known.ram), str(known.name)) if known is not None else (0, 0, "")


def _nic(seen: Inventory, key: str, port: Any) -> NicSpec:
    network = seen.networks.get(port.network_id)
    return NicSpec(
        key=key,
        mac=str(port.mac_address).lower(),
        network=network.name if network is not None else port.network_id,
        addresses=addresses(port),
        link_up=bool(port.is_admin_state_up),
    )


def addresses(port: Any) -> tuple[str, ...]:
    """The fixed ones."""
    found: Sequence[Mapping[str, str]] = port.fixed_ips or ()
    return tuple(entry["ip_address"] for entry in found)
