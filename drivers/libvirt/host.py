"""What a libvirt host says of itself: versions, machine types, firmware, CPU models, memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from whimbrel.model.vm import Firmware

KIB = 1024
BACKUP_SINCE = 7_002_000
"""libvirt 7.2 turned incremental backup on for every QEMU that can do it."""


@dataclass(frozen=True, slots=True)
class DomainCapabilities:
    """From ``<domainCapabilities>``: https://libvirt.org/formatdomaincaps.html."""

    arch: str = ""
    vcpus_max: int | None = None
    firmwares: tuple[Firmware, ...] = ("bios",)
    cpu_models: tuple[str, ...] = ()
    disk_buses: tuple[str, ...] = ()
    backup: bool = False


def read_domain_capabilities(xml: str) -> DomainCapabilities:
    """Domain capabilities from their XML. Pure."""
    root = ET.fromstring(xml)  # noqa: S314 - see the import
    vcpu = root.find("vcpu")
    backup = root.find("features/backup")
    return DomainCapabilities(
        arch=root.findtext("arch") or "",
        vcpus_max=int(vcpu.get("max", "0")) or None if vcpu is not None else None,
        firmwares=_firmwares(root),
        cpu_models=tuple(
            sorted({model.text or "" for model in root.findall("cpu/mode[@name='custom']/model") if _usable(model)})
        ),
        disk_buses=tuple(
            value.text or "" for value in root.findall("devices/disk/enum[@name='bus']/value") if value.text
        ),
        backup=backup is not None and backup.get("supported") == "yes",
    )


def _usable(model: ET.Element) -> bool:
    return model.get("usable") != "no" and bool(model.text)


def _firmwares(root: ET.Element) -> tuple[Firmware, ...]:
    found: list[Firmware] = ["bios"]
    kinds = {value.text for value in root.findall("os/enum[@name='firmware']/value")}
    loader = root.find("os/loader")
    if "efi" in kinds:
        found.append("uefi")
        secure = root.findall("os/loader/enum[@name='secure']/value") if loader is not None else []
        if any(value.text == "yes" for value in secure):
            found.append("uefi-secure")
    return tuple(found)


def domain_capabilities(conn: Any) -> DomainCapabilities:
    """Of the host's own architecture, with acceleration if there is any. Raises libvirtError.

    A CPU model counts as usable when it is so with acceleration or without: emulated VMs may have models that the
    host's CPU cannot run. A read-only connection may not ask; what the libvirt version brings is assumed then.
    """
    try:
        return _asked_capabilities(conn)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return DomainCapabilities()  # not every hypervisor's driver tells them
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_DENIED:
            raise
        return DomainCapabilities(backup=conn.getLibVersion() >= BACKUP_SINCE)


def _asked_capabilities(conn: Any) -> DomainCapabilities:
    best = read_domain_capabilities(conn.getDomainCapabilities(None, None, None, None, 0))
    with suppress(libvirt.libvirtError):
        emulated = read_domain_capabilities(conn.getDomainCapabilities(None, None, None, "qemu", 0))
        return replace(best, cpu_models=tuple(sorted({*best.cpu_models, *emulated.cpu_models})))
    return best


def read_machines(capabilities_xml: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architectures and machine types (aliases and their versioned names) from ``<capabilities>``. Pure."""
    root = ET.fromstring(capabilities_xml)  # noqa: S314 - see the import
    archs, machines = set(), set()
    for guest in root.findall("guest"):
        if guest.findtext("os_type") != "hvm":
            continue
        arch = guest.find("arch")
        if arch is None:
            continue
        archs.add(arch.get("name", ""))
        for machine in guest.iter("machine"):
            machines.add(machine.text or "")
            machines.add(machine.get("canonical") or machine.text or "")
    return tuple(sorted(archs)), tuple(sorted(machines - {""}))


def memory(conn: Any) -> tuple[int | None, int | None]:
    """Free and total memory of the host in bytes; free counts what the kernel can give back. Raises libvirtError."""
    total = int(conn.getInfo()[1]) * KIB * KIB
    with suppress(libvirt.libvirtError):
        stats = conn.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        return sum(int(stats.get(name, 0)) for name in ("free", "buffers", "cached")) * KIB, total
    return int(conn.getFreeMemory()), total


def version(conn: Any) -> str:
    """``QEMU 7.2.22, libvirt 9.0.0``. Raises libvirtError."""
    return f"{conn.getType()} {_dotted(conn.getVersion())}, libvirt {_dotted(conn.getLibVersion())}"


def _dotted(number: int) -> str:
    """libvirt's version numbers are major * 1000000 + minor * 1000 + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
