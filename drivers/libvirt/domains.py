"""Domains found by reference or name, without the driver's own mover sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, images, tag, xen_xml
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.vm import Power, VmSpec


def find(conn: Any, ref: str) -> Any | None:
    """The domain with this UUID, or else this name; None if there is none. Raises Conflict if they are two."""
    by_uuid = _lookup(conn.lookupByUUIDString, ref) if domain_xml.is_uuid(ref) else None
    by_name = _lookup(conn.lookupByName, ref)
    if by_uuid is not None and by_name is not None and by_uuid.UUIDString() != by_name.UUIDString():
        raise Conflict(f"{ref} is the id of one VM and the name of another", action="give the id of the VM you mean")
    return by_uuid if by_uuid is not None else by_name


def get(conn: Any, ref: str) -> Any:
    """The domain with this UUID or name. Raises NotFound."""
    domain = find(conn, ref)
    if domain is None:
        raise NotFound(f"there is no VM {ref}", vm=ref)
    return domain


def _lookup(look_up: Any, word: str) -> Any | None:
    try:
        return look_up(word)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG}:
            return None
        raise


def definition(domain: Any) -> str:
    """The XML that the next start would use. Without secrets: no VNC or SPICE password is asked for."""
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def all_vms(conn: Any) -> Iterator[tuple[Any, ET.Element]]:
    """Every domain that is a VM, with its live XML; one that vanishes while being listed is left out."""
    for domain in conn.listAllDomains():
        with suppress(libvirt.libvirtError):
            xml = domain_xml.parse(domain.XMLDesc())
            if not tag.is_session(xml):
                yield domain, xml


def all_defined(conn: Any) -> Iterator[tuple[Any, ET.Element, ET.Element]]:
    """Every VM with its live and its written definition; one that vanishes while being listed is left out."""
    for domain, live in all_vms(conn):
        with suppress(libvirt.libvirtError):
            written = domain_xml.parse(definition(domain))
            yield domain, live, written


def power(domain: Any) -> Power:
    """What the domain does now."""
    state, _reason = domain.state()
    return domain_xml.POWER_BY_STATE.get(state, Power.UNKNOWN)


def spec(conn: Any, domain: Any, *, deep: bool = True) -> VmSpec:
    """The domain as the model has it; see ``images.disk_specs`` for ``deep``. Raises libvirtError.

    Machine, buses and card models of a Xen guest are those that it is rebuilt with; ``definition`` is Xen's own.
    """
    live = xen_xml.for_kvm(domain_xml.parse(domain.XMLDesc())).domain
    written = definition(domain)
    kept = xen_xml.for_kvm(domain_xml.parse(written)).domain
    kind = live.find("os/type")
    return VmSpec(
        ref=domain.UUIDString(),
        name=domain.name(),
        power=power(domain),
        vcpus=domain_xml.vcpus(kept),
        memory_bytes=domain_xml.size_bytes(kept.find("memory")),
        arch=kind.get("arch", "x86_64") if kind is not None else "x86_64",
        machine=kind.get("machine", "") if kind is not None else "",
        firmware=domain_xml.firmware(kept),
        disks=images.disk_specs(conn, domain, live, deep=deep),
        nics=domain_xml.nics(live),
        definition=written,
        definition_kind=domain_xml.DEFINITION_KIND,
        definition_digest=domain_xml.digest(written),
        autostart=bool(domain.autostart()) if domain.isPersistent() else False,
        owner_migration=tag.migration_of(kept, "vm"),
    )
