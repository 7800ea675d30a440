"""A Xen guest's definition as a KVM machine. Pure.

Xen's HVM guests see the i440fx board that QEMU calls ``pc``, so that is what they get; UEFI guests get ``q35``.
Paravirtual devices become virtio ones, for which a Linux guest needs drivers in its initramfs, and Windows needs them
installed. PV guests have no board, firmware or boot loader of their own: all of it is new to them.

Xen's elements: https://libvirt.org/drvxen.html and https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from drivers.libvirt import domain_xml

XEN_NAMESPACE = "{http://libvirt.org/schemas/domain/xen/1.0}"
DIRECT_BOOT = ("kernel", "initrd", "cmdline", "root")
XEN_FEATURES = ("xen", "viridian")
PARAVIRTUAL_MODELS = {"netfront", "xen", "vif"}


@dataclass(frozen=True, slots=True)
class Conversion:
    """The definition for KVM, what is otherwise in it, and what cannot be converted at all."""

    domain: ET.Element
    changes: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()


def is_xen(domain: ET.Element) -> bool:
    """Whether the definition is one of libvirt's Xen driver."""
    return domain.get("type") == "xen"


def for_kvm(domain: ET.Element, *, kind: str = "kvm") -> Conversion:
    """A Xen definition as one of type ``kind`` (kvm, qemu); any other definition comes back as it is."""
    if not is_xen(domain):
        return Conversion(domain)
    made = copy.deepcopy(domain)
    made.set("type", kind)
    told: list[str] = []
    blockers: list[str] = []
    paravirtual = domain_xml.text(made, "os/type") != "hvm"
    uefi = domain_xml.firmware(made) != "bios"
    told += _board(made, paravirtual=paravirtual, uefi=uefi)
    _features(made, told)
    _cpu(made, kind, told)
    for node in [node for node in made if node.tag.startswith(XEN_NAMESPACE)]:
        made.remove(node)
        told.append("settings for Xen's own tools are dropped")
    devices = made.find("devices")
    if devices is not None:
        _disks(devices, told, blockers, uefi=uefi)
        _nics(devices, told, paravirtual=paravirtual)
        _consoles(devices, told)
        _others(devices, told)
    return Conversion(made, tuple(dict.fromkeys(told)), tuple(blockers))


def _board(domain: ET.Element, *, paravirtual: bool, uefi: bool) -> list[str]:
    """Boot element, machine type; what changes in the way the guest boots."""
    told = []
    os_element = domain.find("os")
    if os_element is None:
        os_element = ET.Element("os")
        domain.insert(0, os_element)
    kind = os_element.find("type")
    if kind is None:
        kind = ET.SubElement(os_element, "type")
    before = "paravirtual" if paravirtual else (kind.get("machine") or "xenfv")
    kind.text = "hvm"
    kind.set("machine", "q35" if uefi else "pc")
    kind.attrib.setdefault("arch", "x86_64")
    told.append(f"machine: {before} becomes {kind.get('machine')}")
    if not uefi:
        for node in os_element.findall("loader"):
            os_element.remove(node)  # hvmloader: KVM brings its own BIOS
    direct = [name for name in DIRECT_BOOT if os_element.find(name) is not None]
    for name in direct:
        for node in os_element.findall(name):
            os_element.remove(node)
    if domain.find("bootloader") is not None:
        told.append("pygrub starts the guest at the source: its boot disk needs a boot loader in its boot sector")
    elif "kernel" in direct:
        told.append(
            "a kernel of the source's host is booted: the boot disk needs a kernel and a boot loader of its own"
        )
    for name in ("bootloader", "bootloader_args"):
        for node in domain.findall(name):
            domain.remove(node)
    return told


def _features(domain: ET.Element, told: list[str]) -> None:
    features = domain.find("features")
    if features is None:
        features = ET.SubElement(domain, "features")
    for name in XEN_FEATURES:
        for node in features.findall(name):
            features.remove(node)
            told.append(f"feature {name} is dropped")
    for name in ("acpi", "apic"):
        if features.find(name) is None:
            ET.SubElement(features, name)
    for clock in domain.findall("clock"):
        for timer in clock.findall("timer"):
            clock.remove(timer)


def _cpu(domain: ET.Element, kind: str, told: list[str]) -> None:
    """Emulation without KVM has no host-passthrough."""
    cpu = domain.find("cpu")
    if cpu is not None and kind != "kvm" and cpu.get("mode") in {"host-passthrough", "host-model"}:
        domain.remove(cpu)
        told.append(f"CPU mode {cpu.get('mode')} needs KVM: the default model is used")


def _disks(devices: ET.Element, told: list[str], blockers: list[str], *, uefi: bool) -> None:
    for node in devices.findall("disk"):
        target = node.find("target")
        if target is None:
            continue
        key = target.get("dev", "")
        driver = node.find("driver")
        form = domain_xml.driver_format(driver)
        if driver is not None:
            node.remove(driver)
        # blkback, tapdisk and qdisk are the source's ways to the image; caching is left to QEMU's default.
        node.insert(0, ET.Element("driver", {"name": "qemu", "type": form}))
        for backend in node.findall("backenddomain"):
            node.remove(backend)
            told.append(f"disk {key}: its driver domain is dropped")
        drive = node.get("device", "disk") in {"cdrom", "floppy"}
        if not drive and re.fullmatch(r"(xvd|hd|sd)[a-z]+\d+", key):
            blockers.append(
                f"disk {key} is a partition without a disk around it, which KVM cannot give to a guest: copy its "
                "content into a whole disk with a boot loader at the source first"
            )
        old = target.get("bus") or ("xen" if key.startswith("xvd") else "ide")
        bus = old
        if old == "xen":
            bus = "virtio" if not drive else "sata" if uefi else "ide"
        elif old == "ide" and uefi:
            bus = "sata"  # q35 has no IDE
        target.set("bus", bus)
        if bus != old:
            for address in node.findall("address"):
                node.remove(address)
            if not drive:
                needs = ": the guest needs the virtio_blk driver in its initramfs" if bus == "virtio" else ""
                told.append(f"disk {key}: bus {old} becomes {bus}{needs}")


def _nics(devices: ET.Element, told: list[str], *, paravirtual: bool) -> None:
    for index, node in enumerate(devices.findall("interface")):
        for name in ("backenddomain", "script"):
            for child in node.findall(name):
                node.remove(child)
        model = node.find("model")
        old = model.get("type", "") if model is not None else ""
        # An HVM guest without a named model has Xen's emulated default beside its paravirtual card.
        new = "virtio" if old in PARAVIRTUAL_MODELS or (not old and paravirtual) else old or "rtl8139"
        if model is None:
            model = ET.SubElement(node, "model")
        model.set("type", new)
        if new != old:
            needs = ": the guest needs the virtio_net driver" if new == "virtio" else ""
            told.append(f"network card nic{index}: model {old or 'of Xen'} becomes {new}{needs}")


def _consoles(devices: ET.Element, told: list[str]) -> None:
    """Xen's console (hvc0) becomes the first serial port (ttyS0)."""
    for node in devices.findall("console"):
        target = node.find("target")
        if target is not None and target.get("type") == "xen":
            devices.remove(node)
            told.append("Xen's console hvc0 becomes serial port ttyS0: set console=ttyS0 in the guest's boot loader")
    if devices.find("serial") is None:
        serial = ET.SubElement(devices, "serial", {"type": "pty"})
        ET.SubElement(serial, "target", {"port": "0"})


def _others(devices: ET.Element, told: list[str]) -> None:
    for node in devices.findall("controller"):
        if node.get("type") == "xenbus" or str(node.get("model", "")).startswith("qusb"):
            devices.remove(node)
    for node in devices.findall("input"):
        if node.get("bus") == "xen":
            devices.remove(node)
    for node in devices.findall("memballoon"):
        if node.get("model") == "xen":
            node.set("model", "virtio")
    for model in devices.findall("video/model"):
        if model.get("type") == "xen":
            model.attrib.clear()
            model.set("type", "vga")
            told.append("Xen's frame buffer becomes a VGA card")
