"""A VM whose disks were taken: its definition stays, each disk names a file that cannot exist. Pure functions over XML.

The disks' own elements lie in the VM's metadata, so that one write of the definition takes them away, and one gives
them back. What else is in the definition (graphics passwords too) is not touched and not kept twice.
"""

from __future__ import annotations

import copy
from xml.etree import ElementTree as ET

from drivers.libvirt import tag
from whimbrel.model.handover import Hold

NOWHERE = "/dev/null/whimbrel-has-taken-this-disk"
"""Below something that is no directory, so that no file can ever be here. libvirt shows it to whoever starts the VM."""
TAKEN_AWAY = ("source", "backingStore", "mirror", "encryption", "auth", "transient")


def _key(node: ET.Element) -> str:
    target = node.find("target")
    return target.get("dev", "") if target is not None else ""


def _is_disk(node: ET.Element) -> bool:
    return node.get("device", "disk") in {"disk", "lun"}


def mark_of(domain: ET.Element) -> ET.Element | None:
    """The element that holds the disks, if they were taken."""
    return domain.find(f"metadata/{tag.HELD}")


def hold_of(domain: ET.Element) -> Hold | None:
    """Who has taken the disks, and in which turn."""
    mark = mark_of(domain)
    return Hold(migration=mark.get("migration", ""), turn=int(mark.get("turn", "0"))) if mark is not None else None


def take(domain: ET.Element, *, migration: str, turn: int) -> None:
    """Take the disks from a ``<domain>`` in place; one whose disks were taken before gets the new turn only."""
    mark = mark_of(domain)
    if mark is not None:
        mark.set("turn", str(turn))
        return
    mark = ET.Element(tag.HELD, {"migration": migration, "turn": str(turn)})
    for node in domain.findall("devices/disk"):
        if _is_disk(node):
            mark.append(copy.deepcopy(node))
            _empty(node, f"{NOWHERE}/{migration}/{_key(node)}")
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        domain.insert(0, metadata)
    metadata.append(mark)


def _empty(node: ET.Element, path: str) -> None:
    for name in TAKEN_AWAY:
        for child in node.findall(name):
            node.remove(child)
    node.set("type", "file")
    node.set("device", "disk")
    at = 1 if node.find("driver") is not None else 0
    node.insert(at, ET.Element("source", {"file": path}))


def give_back(domain: ET.Element, original: ET.Element | None = None) -> None:
    """Put the disks back in place, from the metadata, or from ``original`` (a definition) where that has lost them.

    A definition whose disks are its own is left as it is.
    """
    mark = mark_of(domain)
    kept = [*mark] if mark is not None else []
    if not kept and original is not None:
        kept = [node for node in original.findall("devices/disk") if _is_disk(node)]
    by_key = {_key(node): node for node in kept}
    devices = domain.find("devices")
    assert devices is not None, "libvirt never shows a domain without devices"
    for index, node in enumerate(list(devices)):
        if node.tag == "disk" and _names_nothing(node) and _key(node) in by_key:
            devices.remove(node)
            devices.insert(index, copy.deepcopy(by_key[_key(node)]))
    metadata = domain.find("metadata")
    if metadata is not None and mark is not None:
        metadata.remove(mark)
        if len(metadata) == 0:
            domain.remove(metadata)


def _names_nothing(node: ET.Element) -> bool:
    source = node.find("source")
    return source is not None and source.get("file", "").startswith(NOWHERE)


def is_taken(domain: ET.Element) -> bool:
    """Whether a disk of the definition names nothing, whatever the metadata says."""
    return any(_names_nothing(node) for node in domain.findall("devices/disk"))


def before(domain: ET.Element) -> ET.Element:
    """The definition as it was before the disks were taken."""
    whole = copy.deepcopy(domain)
    give_back(whole)
    return whole
