"""Domain XML read into the model: pure functions over text.

Element meanings: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from drivers.libvirt import tag
from whimbrel.model.vm import Firmware, NicSpec, Power

DEFINITION_KIND = "libvirt"

UNITS_BYTES = {
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": 1024,
    "KiB": 1024,
    "MB": 1000**2,
    "M": 1024**2,
    "MiB": 1024**2,
    "GB": 1000**3,
    "G": 1024**3,
    "GiB": 1024**3,
    "TB": 1000**4,
    "T": 1024**4,
    "TiB": 1024**4,
}

POWER_BY_STATE = {
    1: Power.RUNNING,  # VIR_DOMAIN_RUNNING
    2: Power.RUNNING,  # VIR_DOMAIN_BLOCKED: Xen's word for a running domain that waits for I/O
    3: Power.PAUSED,
    4: Power.RUNNING,  # VIR_DOMAIN_SHUTDOWN: on its way down, not off yet
    5: Power.OFF,
    6: Power.CRASHED,
    7: Power.SUSPENDED,  # VIR_DOMAIN_PMSUSPENDED
}


@dataclass(frozen=True, slots=True)
class XmlDisk:
    """A ``<disk>`` as written, before sizes and image details are asked for."""

    key: str
    device: str
    location: str
    format: str
    bus: str
    serial: str | None
    boot_order: int | None
    read_only: bool
    shareable: bool
    encrypted: bool
    chain: tuple[str, ...]
    pool_volume: tuple[str, str] | None


def parse(xml: str) -> ET.Element:
    """The ``<domain>`` element. Raises ``ET.ParseError``."""
    return ET.fromstring(xml)  # noqa: S314 - see the import


def text_of(domain: ET.Element) -> str:
    """The XML that libvirt takes."""
    return ET.tostring(domain, encoding="unicode")


def text(domain: ET.Element, path: str, default: str = "") -> str:
    """Stripped text of the first element at ``path``."""
    return (domain.findtext(path) or default).strip()


def size_bytes(node: ET.Element | None) -> int:
    """A ``<memory unit='KiB'>``-like element in bytes; KiB where no unit is given; 0 for None."""
    if node is None or not node.text:
        return 0
    return int(node.text.strip()) * UNITS_BYTES[node.get("unit", "KiB")]


def vcpus(domain: ET.Element) -> int:
    """vCPUs that the VM starts with: ``<vcpu current=>`` if given, else its text."""
    node = domain.find("vcpu")
    if node is None:
        return 1
    return int(node.get("current") or (node.text or "1").strip())


def firmware(domain: ET.Element) -> Firmware:
    """BIOS, UEFI, or UEFI that enforces Secure Boot (a secure loader, or the firmware feature of that name)."""
    os_element = domain.find("os")
    if os_element is None:
        return "bios"
    loader = os_element.find("loader")
    uefi = os_element.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")
    if not uefi:
        return "bios"
    features = {node.get("name"): node.get("enabled") for node in os_element.findall("firmware/feature")}
    secure = (loader is not None and loader.get("secure") == "yes") or features.get("secure-boot") == "yes"
    return "uefi-secure" if secure else "uefi"


def source_location(source: ET.Element | None) -> str:
    """Where a ``<source>`` points: a path, a device, ``pool/volume``, or ``protocol:name``; "" for none."""
    if source is None:
        return ""
    for attribute in ("file", "dev", "dir"):
        if source.get(attribute):
            return str(source.get(attribute))
    if source.get("pool"):
        return f"{source.get('pool')}/{source.get('volume')}"
    if source.get("protocol"):
        return f"{source.get('protocol')}:{source.get('name', '')}"
    return ""


def driver_format(driver: ET.Element | None) -> str:
    """Image format of a ``<driver>``; ``aio`` is what Xen's tapdisk calls raw, and its ``phy`` driver names none."""
    named = driver.get("type", "raw") if driver is not None else "raw"
    return "raw" if named == "aio" else named


def disks(domain: ET.Element) -> tuple[XmlDisk, ...]:
    """All ``<disk>`` elements, CD-ROM and floppy drives included, in the order of the definition."""
    return tuple(_disk(node) for node in domain.findall("devices/disk"))


def _disk(node: ET.Element) -> XmlDisk:
    target, source, driver, boot = (node.find(name) for name in ("target", "source", "driver", "boot"))
    pool_volume = None
    if source is not None and source.get("pool") and source.get("volume"):
        pool_volume = (str(source.get("pool")), str(source.get("volume")))
    return XmlDisk(
        key=target.get("dev", "") if target is not None else "",
        device=node.get("device", "disk"),
        location=source_location(source),
        format=driver_format(driver),
        bus=target.get("bus", "virtio") if target is not None else "virtio",
        serial=node.findtext("serial"),
        boot_order=int(boot.get("order", "0")) or None if boot is not None else None,
        read_only=node.find("readonly") is not None,
        shareable=node.find("shareable") is not None,
        encrypted=node.find("encryption") is not None or node.find("source/encryption") is not None,
        chain=tuple(_backing(node)),
        pool_volume=pool_volume,
    )


def _backing(node: ET.Element) -> Iterator[str]:
    """Images below the disk's top one as the live definition tells them, nearest first."""
    below = node.find("backingStore")
    while below is not None:
        location = source_location(below.find("source"))
        if location:
            yield location
        below = below.find("backingStore")


def nics(domain: ET.Element) -> tuple[NicSpec, ...]:
    """All ``<interface>`` elements; keys are ``nic0``, ``nic1`` ... in the order of the definition."""
    found = []
    for index, node in enumerate(domain.findall("devices/interface")):
        mac, model, link = (node.find(name) for name in ("mac", "model", "link"))
        found.append(
            NicSpec(
                key=f"nic{index}",
                mac=(mac.get("address", "") if mac is not None else "").lower(),
                network=nic_network(node),
                model=model.get("type", "") if model is not None else "",
                addresses=tuple(str(ip.get("address")) for ip in node.findall("ip") if ip.get("address")),
                link_up=link is None or link.get("state") != "down",
            )
        )
    return tuple(found)


def nic_network(node: ET.Element) -> str:
    """What an ``<interface>`` is plugged into, in one word.

    A libvirt network by its name; else ``bridge:<name>``, ``direct:<device>``, ``user``, or the interface's type.
    """
    kind = node.get("type", "")
    source = node.find("source")
    if kind == "network" and source is not None:
        return source.get("network", "")
    if kind == "bridge" and source is not None:
        return f"bridge:{source.get('bridge', '')}"
    if kind == "direct" and source is not None:
        return f"direct:{source.get('dev', '')}"
    return kind


def digest(xml: str) -> str:
    """Digest of a persistent definition without our mark: equal for definitions that mean the same to libvirt.

    Canonical XML (C14N 2.0, whitespace stripped) evens out attribute order, quotes and indentation.
    """
    domain = parse(xml)
    tag.strip(domain)
    canonical = ET.canonicalize(ET.tostring(domain, encoding="unicode"), strip_text=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def console_log(domain: ET.Element) -> str | None:
    """Path of the file that the first serial port or console is logged to, on the VM's host."""
    for node in (*domain.findall("devices/serial"), *domain.findall("devices/console")):
        log = node.find("log")
        if log is not None and log.get("file"):
            return log.get("file")
        source = node.find("source")
        if node.get("type") == "file" and source is not None and source.get("path"):
            return source.get("path")
    return None


def has_agent_channel(domain: ET.Element) -> bool:
    """Whether the QEMU guest agent's channel is there."""
    return any(target.get("name") == "org.qemu.guest_agent.0" for target in domain.findall("devices/channel/target"))


def is_uuid(word: str) -> bool:
    """Whether ``word`` has the form in which libvirt writes UUIDs."""
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", word.lower()) is not None
