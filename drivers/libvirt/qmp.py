"""QMP through libvirt: works wherever the connection works, without access to the host.

Commands: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html. libvirt marks a domain that it was used on as
tainted ("custom-monitor"), which is a note in its log.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import libvirt_qemu


class QmpError(Exception):
    """QEMU refused a command. Stays inside the driver: ``Connection.using`` turns it into an error of the taxonomy."""

    def __init__(self, command: str, message: str) -> None:
        self.command = command
        self.message = message
        super().__init__(f"QEMU refused {command}: {message}")


IMAGE_DRIVERS = frozenset({"qcow2", "raw", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks"})
"""QEMU's format drivers, as opposed to filters (``copy-before-write``) and protocols (``file``)."""


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap on an image, as QEMU sees it."""

    name: str
    recording: bool
    persistent: bool
    inconsistent: bool


@dataclass(frozen=True, slots=True)
class Node:
    """The top image of one disk in a running QEMU process."""

    name: str
    alias: str
    size_bytes: int
    format: str
    compat: str | None
    filename: str
    bitmaps: tuple[Bitmap, ...]
    internal_snapshots: int = 0

    def bitmap(self, name: str) -> Bitmap | None:
        """The bitmap of this name."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


def execute(domain: Any, command: str, **arguments: Any) -> Any:
    """The ``return`` of a QMP command; names take underscores for dashes. Raises QmpError, libvirtError."""
    message: dict[str, Any] = {"execute": command}
    if arguments:
        message["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(message), 0))
    if "error" in answer:
        raise QmpError(command, answer["error"].get("desc", ""))
    return answer["return"]


def disk_nodes(domain: Any) -> dict[str, Node]:
    """Top images by the alias of the disk that they back (``virtio-disk0``, ``ua-vda``).

    While a backup job runs, QEMU shows its filter as the disk's top; the image is then the node below it.
    """
    nodes: dict[str, Node] = {}
    named: list[dict[str, Any]] | None = None
    for device in execute(domain, "query-block"):
        top = device.get("inserted")
        alias = _alias(device.get("qdev", ""))
        if top is None or not alias:
            continue
        if top["drv"] not in IMAGE_DRIVERS:
            named = execute(domain, "query-named-block-nodes", flat=True) if named is None else named
            top = _below_filter(top, named)
        nodes[alias] = _node(alias, top)
    return nodes


def _below_filter(top: dict[str, Any], named: list[dict[str, Any]]) -> dict[str, Any]:
    """The image's own node: of the same file, and not one of those that only read or write the file."""
    same = (node for node in named if node["drv"] in IMAGE_DRIVERS and node["file"] == top["file"])
    return next(same, top)


def _node(alias: str, shown: dict[str, Any]) -> Node:
    image = shown.get("image", {})
    specific = image.get("format-specific", {})
    return Node(
        name=shown["node-name"],
        alias=alias,
        size_bytes=int(image.get("virtual-size", 0)),
        format=str(image.get("format", "raw")),
        compat=specific.get("data", {}).get("compat") if specific.get("type") == "qcow2" else None,
        filename=str(image.get("filename", "")),
        bitmaps=tuple(_bitmaps(shown)),
        internal_snapshots=len(image.get("snapshots", ())),
    )


def _alias(qdev: str) -> str:
    """``/machine/peripheral/virtio-disk0/virtio-backend`` and plain ids both name the device."""
    parts = qdev.strip("/").split("/")
    return parts[2] if len(parts) > 2 and parts[:2] == ["machine", "peripheral"] else parts[-1]


def _bitmaps(inserted: dict[str, Any]) -> list[Bitmap]:
    return [
        Bitmap(
            name=bitmap["name"],
            recording=bool(bitmap.get("recording")),
            persistent=bool(bitmap.get("persistent")),
            inconsistent=bool(bitmap.get("inconsistent", False)),
        )
        for bitmap in inserted.get("dirty-bitmaps", [])
        if bitmap.get("name")
    ]
