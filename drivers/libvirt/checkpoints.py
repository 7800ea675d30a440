"""libvirt's checkpoints of a VM, and the bitmaps on its images that they stand for.

A checkpoint ``n`` names a bitmap ``n`` on each tracked disk. libvirt 9 lets every bitmap record on, so that one alone
holds what changed since its checkpoint; older versions stopped a bitmap when the next checkpoint was made, and what
changed is then the union with the bitmaps of all later checkpoints. Both are handled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import qmp


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint from libvirt's metadata."""

    name: str
    parent: str | None
    taken_at: datetime
    bitmaps: Mapping[str, str]
    """Disk -> name of its bitmap."""


def read(domain: Any) -> list[Checkpoint]:
    """All checkpoints, oldest first (parents before children). Raises libvirtError."""
    found = {entry.name: entry for entry in map(_read_one, domain.listAllCheckpoints())}
    ordered: list[Checkpoint] = []
    placed: set[str] = set()
    waiting = sorted(found.values(), key=lambda entry: (entry.taken_at, entry.name))
    while waiting:
        ready = [
            entry for entry in waiting if entry.parent is None or entry.parent in placed or entry.parent not in found
        ]
        # A cycle cannot come from libvirt; taking the rest as it is beats looping on it.
        for entry in ready or waiting:
            ordered.append(entry)
            placed.add(entry.name)
        waiting = [entry for entry in waiting if entry.name not in placed]
    return ordered


def _read_one(checkpoint: Any) -> Checkpoint:
    xml = ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))  # noqa: S314 - see the import
    return Checkpoint(
        name=xml.findtext("name") or "",
        parent=xml.findtext("parent/name"),
        taken_at=datetime.fromtimestamp(int(xml.findtext("creationTime") or 0), UTC),
        bitmaps={
            disk.get("name", ""): disk.get("bitmap") or (xml.findtext("name") or "")
            for disk in xml.findall("disks/disk")
            if disk.get("checkpoint") == "bitmap"
        },
    )


def find(checkpoints: Iterable[Checkpoint], name: str) -> Checkpoint | None:
    """The checkpoint of this name."""
    return next((entry for entry in checkpoints if entry.name == name), None)


def since(checkpoints: Sequence[Checkpoint], name: str) -> list[Checkpoint]:
    """The checkpoint ``name`` and all that came after it, oldest first; empty when there is no such checkpoint."""
    entry = find(checkpoints, name)
    if entry is None:
        return []
    chain = [entry]
    grown = True
    while grown:
        known = {item.name for item in chain}
        later = [item for item in checkpoints if item.parent in known and item.name not in known]
        chain += later
        grown = bool(later)
    return chain


def forget_metadata(domain: Any, name: str) -> None:
    """Remove libvirt's record of a checkpoint and leave the bitmaps as they are; one that is gone is fine."""
    try:
        domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise


def remove_bitmap(domain: Any, node: qmp.Node, name: str, *, into: str | None = None) -> None:
    """Remove a bitmap from an image; what it recorded is merged into ``into`` in the same transaction.

    Raises QmpError, libvirtError. A bitmap that is not there is fine.
    """
    bitmap = node.bitmap(name)
    if bitmap is None:
        return
    target = node.bitmap(into) if into is not None else None
    actions: list[dict[str, Any]] = []
    if target is not None and not target.inconsistent and not bitmap.inconsistent:
        merge = {"node": node.name, "target": target.name, "bitmaps": [name]}
        actions.append({"type": "block-dirty-bitmap-merge", "data": merge})
        if bitmap.recording and not target.recording:
            # The removed one was the bitmap that records now: its parent takes over.
            enable = {"node": node.name, "name": target.name}
            actions.append({"type": "block-dirty-bitmap-enable", "data": enable})
    actions.append({"type": "block-dirty-bitmap-remove", "data": {"node": node.name, "name": name}})
    qmp.execute(domain, "transaction", actions=actions)
