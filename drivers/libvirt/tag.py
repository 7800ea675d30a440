"""The mark that the driver leaves in a domain's metadata: whose it is, and what for."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree as ET

NAMESPACE = "https://whimbrel.dev/libvirt/1"
PREFIX = "whimbrel"
ET.register_namespace(PREFIX, NAMESPACE)

HELD_NAMESPACE = "https://whimbrel.dev/libvirt/held/1"
HELD = f"{{{HELD_NAMESPACE}}}disks"
"""See ``drivers.libvirt.held``: the disks that were taken from a VM."""
ET.register_namespace("whimbrel-held", HELD_NAMESPACE)

Role = Literal["vm", "session"]
ELEMENT = f"{{{NAMESPACE}}}owner"
POINT_NAMESPACE = "https://whimbrel.dev/libvirt/point/1"
POINT = f"{{{POINT_NAMESPACE}}}point"
"""See ``drivers.libvirt.point_mark``: libvirt keeps one element for each namespace."""


def element(migration: str, role: Role, **more: str) -> ET.Element:
    """``<whimbrel:owner migration=... role=.../>`` as a child for ``<metadata>``."""
    return ET.Element(ELEMENT, {"migration": migration, "role": role, **more})


def find(domain: ET.Element) -> ET.Element | None:
    """Our mark in a ``<domain>`` element, if it has one."""
    return domain.find(f"metadata/{ELEMENT}")


def migration_of(domain: ET.Element, role: Role) -> str | None:
    """The migration that the domain is marked with in this role."""
    mark = find(domain)
    return mark.get("migration") if mark is not None and mark.get("role") == role else None


def is_session(domain: ET.Element) -> bool:
    """Whether the domain is a mover session of the driver rather than a VM."""
    mark = find(domain)
    return mark is not None and mark.get("role") == "session"


def put(domain: ET.Element, mark: ET.Element) -> None:
    """Set our mark, in place of an earlier one."""
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        domain.insert(0, metadata)
    for old in metadata.findall(ELEMENT):
        metadata.remove(old)
    metadata.append(mark)


def strip(domain: ET.Element) -> None:
    """Remove our marks, and ``<metadata>`` if nothing else is in it."""
    metadata = domain.find("metadata")
    if metadata is None:
        return
    for old in (*metadata.findall(ELEMENT), *metadata.findall(POINT), *metadata.findall(HELD)):
        metadata.remove(old)
    if len(metadata) == 0:
        domain.remove(metadata)
