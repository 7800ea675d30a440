"""The target's domain XML: the source's definition on the target's volumes and networks. Pure.

Kept: uuid, CPU, memory, machine type, clock, firmware kind, disk bus, serial, boot order and PCI addresses, NIC MAC and
model, serial ports, channels. Dropped: whatever names something of the source's host.
"""

from __future__ import annotations

import uuid
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

from drivers.libvirt import domain_xml, served_xml, tag, xen_xml
from whimbrel.errors import InvalidPlan, Unsupported
from whimbrel.model.vm import NicSpec, TargetDisk, TargetVm

UUID_SPACE = uuid.UUID("5b1f9a52-3f0e-5b0e-9c84-6a2f4a1f1c55")
HOST_BOUND_DEVICES = ("hostdev", "filesystem", "shmem", "emulator")
HOST_BOUND_ELEMENTS = ("seclabel", "resource", "bootloader", "bootloader_args")
LOCAL_LISTEN = {"127.0.0.1", "0.0.0.0", "::", "::1", "localhost"}  # noqa: S104 - compared with, not bound
SOCKET_PATH_MAX = 107
QEMU_DRIVER_FORMATS = {"raw": "raw", "qcow2": "qcow2", "qcow2-v2": "qcow2"}


def rebuild(vm: TargetVm, *, console_dir: str | None = None, default_type: str = "qemu") -> str:
    """Domain XML for ``vm``. Serial ports that log to a file do so below ``console_dir`` if given, as does the one of a
    VM that libvirt did not describe.

    ``default_type`` (kvm, qemu) serves VMs that come from something else than KVM, also Xen guests. Raises InvalidPlan,
    Unsupported (a Xen guest that no KVM machine fits).
    """
    source = vm.source
    if source.definition_kind == domain_xml.DEFINITION_KIND and source.definition:
        conversion = xen_xml.for_kvm(domain_xml.parse(source.definition), kind=default_type)
        if conversion.blockers:
            raise Unsupported(f"{source.name} cannot be rebuilt: {conversion.blockers[0]}", vm=source.name)
        domain = conversion.domain
        tag.strip(domain)
        _unbind(domain)
    else:
        domain = _bare(vm, default_type, logged=console_dir is not None)
    _set_text(domain, "name", vm.name, at=0)
    if domain.find("uuid") is None:
        _set_text(domain, "uuid", str(uuid.uuid5(UUID_SPACE, f"{vm.migration}/{source.ref}")), at=1)
    tag.put(domain, tag.element(vm.migration, "vm"))
    devices = domain.find("devices")
    if devices is None:
        devices = ET.SubElement(domain, "devices")
    kept = _replace_disks(devices, vm.disks)
    if kept:
        tag.put(domain, tag.element(vm.migration, "vm", **{served_xml.KEPT: ",".join(kept)}))
    _replace_nics(devices, vm.nics)
    _replace_consoles(devices, vm.name, console_dir, renamed=vm.name != source.name)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")


def target_uuid(xml: str) -> str:
    """UUID in a domain's XML, as libvirt writes it."""
    return domain_xml.text(domain_xml.parse(xml), "uuid").lower()


def _bare(vm: TargetVm, kind: str, *, logged: bool) -> ET.Element:
    """A plain machine from the neutral fields, for a source that libvirt does not describe; a ``logged`` console."""
    source = vm.source
    domain = ET.Element("domain", {"type": kind})
    ET.SubElement(domain, "memory", {"unit": "b"}).text = str(source.memory_bytes)
    ET.SubElement(domain, "vcpu").text = str(source.vcpus)
    firmware = {} if source.firmware == "bios" else {"firmware": "efi"}
    os_element = ET.SubElement(domain, "os", firmware)
    machine = {"machine": source.machine} if source.machine else {"machine": "q35"} if firmware else {}
    ET.SubElement(os_element, "type", {"arch": source.arch, **machine}).text = "hvm"
    if source.firmware == "uefi-secure":
        _secure_boot(os_element)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    devices = ET.SubElement(domain, "devices")
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
    serial = ET.SubElement(devices, "serial", {"type": "file" if logged else "pty"})
    ET.SubElement(serial, "target", {"port": "0"})
    return domain


def _secure_boot(os_element: ET.Element) -> None:
    features = ET.SubElement(os_element, "firmware")
    for name in ("secure-boot", "enrolled-keys"):
        ET.SubElement(features, "feature", {"enabled": "yes", "name": name})


def _unbind(domain: ET.Element) -> None:
    """Take out what names files, processes or hardware of the source's host."""
    domain.attrib.pop("id", None)
    for name in HOST_BOUND_ELEMENTS:
        for node in domain.findall(name):
            domain.remove(node)
    for name in ("cputune", "numatune"):
        _unpin(domain, name)
    vcpu = domain.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
    _unbind_firmware(domain)
    devices = domain.find("devices")
    if devices is not None:
        _unbind_devices(devices)


def _unbind_devices(devices: ET.Element) -> None:
    for name in HOST_BOUND_DEVICES:
        for node in devices.findall(name):
            devices.remove(node)
    for node in devices.findall("tpm"):
        backend = node.find("backend")
        if backend is not None and backend.get("type") == "passthrough":
            devices.remove(node)
    for graphics in devices.findall("graphics"):
        _unbind_graphics(graphics)
    for channel in devices.findall("channel"):
        source = channel.find("source")
        if source is not None and channel.get("type") == "unix":
            channel.remove(source)  # libvirt makes a path of its own for each host
    for device in devices:
        given = device.find("alias")
        if given is not None and not given.get("name", "").startswith("ua-"):
            device.remove(given)


def _unpin(domain: ET.Element, name: str) -> None:
    node = domain.find(name)
    if node is None:
        return
    for child in list(node):
        if child.tag.endswith("pin") or child.tag in {
            "vcpusched",
            "iothreadsched",
            "emulatorsched",
            "memory",
            "memnode",
        }:
            node.remove(child)
    if len(node) == 0:
        domain.remove(node)


def _unbind_firmware(domain: ET.Element) -> None:
    """Let the target choose its own UEFI build of the same kind: paths of loaders differ between distributions."""
    os_element = domain.find("os")
    kind = domain_xml.firmware(domain)
    if os_element is None or kind == "bios":
        return
    for name in ("loader", "nvram", "firmware"):
        for node in os_element.findall(name):
            os_element.remove(node)
    os_element.set("firmware", "efi")
    if kind == "uefi-secure":
        _secure_boot(os_element)


def _unbind_graphics(graphics: ET.Element) -> None:
    if graphics.get("autoport") == "yes":
        for name in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(name, None)
    graphics.attrib.pop("socket", None)
    if graphics.get("listen") not in LOCAL_LISTEN:
        graphics.attrib.pop("listen", None)
    for listen in graphics.findall("listen"):
        if listen.get("type") == "address" and listen.get("address") not in LOCAL_LISTEN:
            listen.attrib.pop("address", None)
        if listen.get("type") == "socket":
            listen.attrib.pop("socket", None)


def _replace_disks(devices: ET.Element, disks: tuple[TargetDisk, ...]) -> list[str]:
    """Returns what the mark must keep of disks that are served for now."""
    kept = []
    wanted = {disk.spec.key: disk for disk in disks}
    for node in devices.findall("disk"):
        target = node.find("target")
        key = target.get("dev", "") if target is not None else ""
        if node.get("device", "disk") in {"cdrom", "floppy"}:
            _empty_drive(node)
        elif key in wanted:
            disk = wanted.pop(key)
            _point(node, disk)
            if disk.served is not None:
                kept.append(served_xml.serve(node, disk))
        else:
            devices.remove(node)
    for disk in wanted.values():
        node = _new_disk(disk)
        devices.append(node)
        if disk.served is not None:
            kept.append(served_xml.serve(node, disk))
    return kept


def _empty_drive(node: ET.Element) -> None:
    """Media are files of the source's host; the drive itself stays."""
    for name in ("source", "backingStore", "mirror"):
        for child in node.findall(name):
            node.remove(child)
    node.set("type", "file")


def _point(node: ET.Element, disk: TargetDisk) -> None:
    """Point an existing ``<disk>`` at its volume, keeping bus, address, serial, boot order and tuning."""
    for name in ("source", "backingStore", "mirror", "encryption", "auth", "transient"):
        for child in node.findall(name):
            node.remove(child)
    location = disk.volume.location
    block = location.startswith("/dev/")
    node.set("type", "block" if block else "file")
    node.set("device", "disk")
    driver = node.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        node.insert(0, driver)
    driver.set("type", _driver_format(disk))
    node.insert(1, ET.Element("source", {"dev" if block else "file": location}))


def _new_disk(disk: TargetDisk) -> ET.Element:
    node = ET.Element("disk", {"type": "file", "device": "disk"})
    ET.SubElement(node, "target", {"dev": disk.spec.key, "bus": disk.spec.bus})
    _point(node, disk)
    if disk.spec.serial:
        ET.SubElement(node, "serial").text = disk.spec.serial
    if disk.spec.boot_order:
        ET.SubElement(node, "boot", {"order": str(disk.spec.boot_order)})
    if disk.spec.read_only:
        ET.SubElement(node, "readonly")
    return node


def _driver_format(disk: TargetDisk) -> str:
    form = QEMU_DRIVER_FORMATS.get(disk.volume.format)
    if form is None:
        raise InvalidPlan(f"QEMU cannot run disk {disk.spec.key} from a volume of format {disk.volume.format}")
    return form


def _replace_nics(devices: ET.Element, nics: tuple[NicSpec, ...]) -> None:
    existing = {f"nic{index}": node for index, node in enumerate(devices.findall("interface"))}
    by_mac = {
        str(mac.get("address")).lower(): key for key, node in existing.items() if (mac := node.find("mac")) is not None
    }
    for nic in nics:
        key = by_mac.get(nic.mac.lower(), nic.key)
        node = existing.pop(key, None)
        if node is None:
            node = ET.SubElement(devices, "interface")
        _plug(node, nic)
    for node in existing.values():
        devices.remove(node)


def _plug(node: ET.Element, nic: NicSpec) -> None:
    """Plug an ``<interface>`` in anew; port profiles, filters and VLANs are the source network's and are dropped."""
    for name in ("source", "target", "virtualport", "filterref", "vlan", "backend", "ip", "route", "script", "port"):
        for child in node.findall(name):
            node.remove(child)
    kind, _, name = nic.network.rpartition(":")
    if nic.network == "user":
        kind, name = "user", ""
    node.set("type", kind or "network")
    if name:
        node.insert(0, ET.Element("source", {{"bridge": "bridge", "direct": "dev"}.get(kind, "network"): name}))
    if kind == "user":
        for child in (*node.findall("driver"), *node.findall("bandwidth")):
            node.remove(child)
    mac = node.find("mac")
    if mac is None:
        mac = ET.SubElement(node, "mac")
    mac.set("address", nic.mac)
    model = node.find("model")
    if model is None and nic.model:
        model = ET.SubElement(node, "model")
    if model is not None and nic.model:
        model.set("type", nic.model)


def _replace_consoles(devices: ET.Element, name: str, console_dir: str | None, *, renamed: bool) -> None:
    """Serial ports and consoles that are tied to a file or device of the source's host.

    A VM under another name (a rehearsal) may be on one host with its source, so its logs and sockets are others.
    """
    for node in devices.findall("console"):
        target = node.find("target")
        if target is None or target.get("type", "serial") == "serial":
            devices.remove(node)  # libvirt's copy of the first serial port; it makes the copy again
    for index, node in enumerate([*devices.findall("serial"), *devices.findall("console")]):
        kind = node.get("type")
        if kind == "file" and console_dir is not None:
            for source in node.findall("source"):
                node.remove(source)
            path = str(PurePosixPath(console_dir) / f"{name}-{index}.log")
            node.insert(0, ET.Element("source", {"path": path, "append": "on"}))
        elif kind in {"file", "unix"} and renamed:
            for source in node.findall("source"):
                source.set("path", _beside(source.get("path", ""), name))
        elif kind in {"pty", "dev", "pipe"}:
            for source in node.findall("source"):
                node.remove(source)
            node.attrib.pop("tty", None)
            node.set("type", "pty")


def _beside(path: str, name: str) -> str:
    """Another path in the same directory, short enough for a socket."""
    renamed = f"{path}.{name}"
    if len(renamed.encode()) > SOCKET_PATH_MAX:
        renamed = str(PurePosixPath(path).with_name(f"whimbrel-{uuid.uuid5(UUID_SPACE, renamed).hex[:8]}"))
    return renamed


def _set_text(domain: ET.Element, name: str, value: str, *, at: int) -> None:
    node = domain.find(name)
    if node is None:
        node = ET.Element(name)
        domain.insert(at, node)
    node.text = value
