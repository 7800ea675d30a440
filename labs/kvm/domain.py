"""Domain XML of a lab guest.

Every path in it (kernel, console log, command channel) is valid on every cloud of the lab, so that a migration that
rewrites only disks and networks gives a VM that boots. The console log is appended to: boot 1 on one cloud and
boot 2 on another follow each other in one file, told apart by the boot counter.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from labs.kvm.initramfs import BootFiles

Bus = Literal["virtio", "scsi"]
DiskFormat = Literal["qcow2", "raw"]
LETTERS = "abcdefgh"


@dataclass(frozen=True)
class DiskSpec:
    """One disk of a guest; its volume is named ``<guest>-<target>.<format>``."""

    size_bytes: int = 64 << 20
    format: DiskFormat = "qcow2"
    bus: Bus = "virtio"
    cache: str | None = None
    """libvirt's cache attribute; None is the hypervisor's default (writeback, guest flushes honoured)."""
    error_policy: str | None = None
    """libvirt's error_policy: "report" lets the guest see a write error, the default pauses it on a full pool."""


@dataclass(frozen=True)
class GuestSpec:
    """A lab guest: its virtual hardware and what it writes."""

    name: str
    disks: tuple[DiskSpec, ...] = (DiskSpec(),)
    memory_mib: int = 96
    vcpus: int = 1
    machine: str = "q35"
    virt_type: Literal["qemu", "kvm"] = "qemu"
    mac: str | None = None
    """None: derived from the name."""
    network: str | None = None
    """Name of a libvirt network; None: user networking."""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    rate: int = 5
    """Records per second, 0 to 20."""
    slots: int = 2048
    """Records kept before the oldest is overwritten, 4 KiB each."""
    dirty_kib: int = 0
    """Random KiB per second written besides the records."""
    hot_mib: int = 8
    reads: int = 0
    """Blocks of 4 KiB read from all over the first disk in every boot, before the first record."""
    """Size of the area these writes fall in, after the records."""
    ignore_acpi: bool = False
    """The guest sees the power button and does nothing."""
    boots_itself: bool = False
    """Kernel and command line come from its first disk (``labs/openstack/guest_image.py``): it boots in any cloud."""

    def effective_mac(self) -> str:
        """Return the MAC address, derived from the name when none is set."""
        if self.mac is not None:
            return self.mac.lower()
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"

    def cmdline(self) -> str:
        """Return the kernel command line."""
        scsi = int(any(disk.bus == "scsi" for disk in self.disks))
        return (
            f"console=ttyS0 quiet panic=-1 wb.rate={self.rate} wb.records={self.slots} wb.dirty_kib={self.dirty_kib} "
            f"wb.hot_mib={self.hot_mib} wb.reads={self.reads} wb.ignore_acpi={int(self.ignore_acpi)} wb.scsi={scsi}"
        )

    def targets(self) -> list[str]:
        """Return the disks' target names in order: vda, vdb, ... and sda, ... for scsi."""
        seen = {"virtio": 0, "scsi": 0}
        names = []
        for disk in self.disks:
            names.append(("vd" if disk.bus == "virtio" else "sd") + LETTERS[seen[disk.bus]])
            seen[disk.bus] += 1
        return names

    def volume_name(self, target: str) -> str:
        """Return the volume name of the disk at ``target``."""
        return f"{self.name}-{target}.{self.disks[self.targets().index(target)].format}"


def domain_xml(spec: GuestSpec, boot: BootFiles, volumes: list[Path], console_log: Path, channel: Path) -> str:
    """Return the libvirt domain XML of ``spec`` with its disks at ``volumes`` (same order as ``spec.disks``)."""
    domain = ET.Element("domain", type=spec.virt_type)
    ET.SubElement(domain, "name").text = spec.name
    ET.SubElement(domain, "uuid").text = spec.uuid
    ET.SubElement(domain, "memory", unit="MiB").text = str(spec.memory_mib)
    ET.SubElement(domain, "vcpu").text = str(spec.vcpus)
    os_ = ET.SubElement(domain, "os")
    ET.SubElement(os_, "type", arch="x86_64", machine=spec.machine).text = "hvm"
    if not spec.boots_itself:
        ET.SubElement(os_, "kernel").text = str(boot.kernel)
        ET.SubElement(os_, "initrd").text = str(boot.initrd)
        ET.SubElement(os_, "cmdline").text = spec.cmdline()
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    ET.SubElement(domain, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        ET.SubElement(domain, event).text = action
    devices = ET.SubElement(domain, "devices")
    ET.SubElement(devices, "emulator").text = "/usr/bin/qemu-system-x86_64"
    for disk, target, volume in zip(spec.disks, spec.targets(), volumes, strict=True):
        _add_disk(devices, disk, target, volume)
    _add_nic(devices, spec)
    if any(disk.bus == "scsi" for disk in spec.disks):
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
    console = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(console, "source", path=str(console_log), append="on")
    ET.SubElement(console, "target", port="0")
    commands = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(commands, "source", mode="bind", path=str(channel))
    ET.SubElement(commands, "target", port="1")
    return ET.tostring(domain, encoding="unicode")


def _add_disk(devices: ET.Element, disk: DiskSpec, target: str, volume: Path) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    driver = ET.SubElement(element, "driver", name="qemu", type=disk.format)
    for attribute, value in (("cache", disk.cache), ("error_policy", disk.error_policy)):
        if value is not None:
            driver.set(attribute, value)
    ET.SubElement(element, "source", file=str(volume))
    ET.SubElement(element, "target", dev=target, bus=disk.bus)


def _add_nic(devices: ET.Element, spec: GuestSpec) -> None:
    nic = ET.SubElement(devices, "interface", type="network" if spec.network else "user")
    ET.SubElement(nic, "mac", address=spec.effective_mac())
    if spec.network:
        ET.SubElement(nic, "source", network=spec.network)
    ET.SubElement(nic, "model", type="virtio")
