"""The mark of an open point on a VM that is read through streams: nothing else on such a host tells that it is open.

It lies in the metadata of the VM's persistent definition, in a namespace of its own, and is taken off when the point
is closed; ``tag.strip`` leaves it out of digests and of rebuilt definitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import tag
from whimbrel.errors import Conflict

PREFIX = "whimbrelpoint"


@dataclass(frozen=True, slots=True)
class PointMark:
    """Which point is open, whose it is, and since when."""

    key: str
    migration: str
    opened_at: datetime


def read(domain: Any) -> PointMark | None:
    """The mark on a VM, if a point is open. Raises libvirtError."""
    try:
        xml = domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, tag.POINT_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    node = ET.fromstring(xml)  # noqa: S314 - see the import
    return PointMark(node.get("key", ""), node.get("migration", ""), datetime.fromisoformat(node.get("opened", "")))


def put(domain: Any, key: str, migration: str) -> PointMark:
    """Mark the VM, or find the mark of an earlier attempt. Raises Conflict when another point is open, libvirtError.

    A point of the same migration that was left open takes the mark with it: one migration reads one point at a time.
    """
    found = read(domain)
    if found is not None and found.migration != migration:
        raise Conflict(f"migration {found.migration} reads the disks of {domain.name()}", point=found.key)
    if found is not None and found.key == key:
        return found
    mark = PointMark(key, migration, datetime.now(UTC))
    opened = mark.opened_at.isoformat(timespec="microseconds")
    element = ET.Element("point", {"key": key, "migration": migration, "opened": opened})
    _set(domain, ET.tostring(element, encoding="unicode"))
    return mark


def remove(domain: Any, key: str, migration: str) -> None:
    """Take the mark of this point off; one that is not there is fine, another's stays. Raises libvirtError."""
    found = read(domain)
    if found is not None and (found.key, found.migration) == (key, migration):
        _set(domain, None)


def _set(domain: Any, xml: str | None) -> None:
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, PREFIX, tag.POINT_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    )
