"""Bitmaps on the images of a VM: whose they are, whether they are whole, and how damaged ones of ours are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivers.libvirt import checkpoints, domain_xml, qmp
from drivers.libvirt.checkpoints import Checkpoint
from whimbrel.model import naming


def running_nodes(domain: Any) -> dict[str, qmp.Node]:
    """Top images of a running VM by disk key. Raises QmpError, libvirtError."""
    by_alias = qmp.disk_nodes(domain)
    nodes = {}
    for disk in domain_xml.parse(domain.XMLDesc()).findall("devices/disk"):
        target, alias = disk.find("target"), disk.find("alias")
        if target is not None and alias is not None and alias.get("name") in by_alias:
            nodes[target.get("dev", "")] = by_alias[alias.get("name", "")]
    return nodes


def damage(known: list[Checkpoint], nodes: Mapping[str, qmp.Node]) -> dict[str, str]:
    """Checkpoint or bitmap name -> what is wrong with it, for all that metadata and images disagree about."""
    found: dict[str, str] = {}
    for entry in known:
        for disk, name in entry.bitmaps.items():
            if disk not in nodes:
                continue
            bitmap = nodes[disk].bitmap(name)
            if bitmap is None:
                found[entry.name] = f"its bitmap is missing on {disk}"
            elif bitmap.inconsistent:
                found[entry.name] = f"its bitmap on {disk} was not closed properly"
    named = {name for entry in known for name in entry.bitmaps.values()}
    for disk, node in nodes.items():
        for bitmap in node.bitmaps:
            if bitmap.name not in named:
                found.setdefault(bitmap.name, f"a bitmap on {disk} without a checkpoint")
    return found


def heal(domain: Any, migration: str, *, spare: str | None, also: str | None = None) -> bool:
    """Remove this migration's damaged checkpoints and bitmaps from a running VM, but not ``spare``.

    ``also`` names one that is to go even if it is whole. Foreign ones are never touched. Returns whether anything
    was removed. Raises QmpError, libvirtError.
    """
    known = checkpoints.read(domain)
    nodes = running_nodes(domain)
    bad = set(damage(known, nodes)) | ({also} if also else set())
    removed = False
    for name in sorted(bad):
        if name == spare or not naming.owns_point(name, migration):
            continue
        removed = remove(domain, domain, known, nodes, name) or removed
    return removed


def remove(vm: Any, holder: Any, known: list[Checkpoint], nodes: Mapping[str, qmp.Node], name: str) -> bool:
    """Remove one checkpoint and its bitmaps; what they recorded goes to the checkpoint before it.

    ``holder`` is the domain that has the images open (the VM itself, or a mover session). Returns whether there was
    anything. Raises QmpError, libvirtError.
    """
    entry = checkpoints.find(known, name)
    found = entry is not None
    for disk, node in nodes.items():
        bitmap = entry.bitmaps.get(disk, name) if entry is not None else name
        if node.bitmap(bitmap) is None:
            continue
        found = True
        before = checkpoints.find(known, entry.parent) if entry is not None and entry.parent else None
        checkpoints.remove_bitmap(holder, node, bitmap, into=before.bitmaps.get(disk) if before else None)
    if entry is not None:
        checkpoints.forget_metadata(vm, name)
    return found
