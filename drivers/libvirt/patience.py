"""How long QEMU waits for a server that is away before a request fails (and, by the disk's policy, the VM is paused).

libvirt 9.0 has no word for QEMU's ``reconnect-delay`` (9.1 reads ``<reconnect delay=''/>``), and QEMU takes it only
when a node is made. So the NBD node of a disk is replaced by one of the same name below its format node, which
``blockdev-reopen`` allows while the VM runs; libvirt's picture stays true.
https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html (BlockdevOptionsNbd, blockdev-reopen)
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from xml.etree import ElementTree as ET

from drivers.libvirt import domain_xml, qmp

RECONNECT_DELAY_S = 15
"""Shorter than the 30 s after which guests give up on SCSI and IDE requests. QEMU's monitor may hang for as long when
something must drain the disk while the server is away, so it must be below libvirt's patience too."""
OPEN_TIMEOUT_S = 5
SPARE = "whimbrel-spare"
DONE = "whimbrel-patient"
"""QEMU does not tell a node's delay again: an empty node of this name is the sign that it was set."""


def ensure(domain: Any) -> None:
    """Give every disk of a running or paused VM that is an NBD export itself a reconnecting node.

    A disk that has one is left alone. Raises QmpError, libvirtError.
    """
    if not domain.isActive():
        return
    xml = domain_xml.parse(domain.XMLDesc())
    for node in xml.findall("devices/disk[@type='network']"):
        source = node.find("source")
        if source is not None and source.get("protocol") == "nbd" and source.get("index"):
            _ensure(domain, node, source, f"libvirt-{source.get('index')}")


def _ensure(domain: Any, disk: ET.Element, source: ET.Element, name: str) -> None:
    nodes = {each["node-name"]: each for each in qmp.execute(domain, "query-named-block-nodes", flat=True)}
    storage, top = f"{name}-storage", nodes.get(f"{name}-format")
    done = f"{DONE}-{name}"
    if top is None or top["drv"] != "raw" or done in nodes:
        return
    spare = f"{SPARE}-{name}"
    options = _nbd(source, storage, top)
    if spare not in nodes:
        qmp.execute(domain, "blockdev-add", **{**options, "node-name": spare})
    if storage in nodes:
        _reopen(domain, disk, top, spare)
        qmp.execute(domain, "blockdev-del", node_name=storage)
    qmp.execute(domain, "blockdev-add", **{**options, "node-name": storage})
    _reopen(domain, disk, top, storage)
    qmp.execute(domain, "blockdev-del", node_name=spare)
    qmp.execute(domain, "blockdev-add", driver="null-co", node_name=done, size=0, read_zeroes=True)


def forget(domain: Any) -> None:
    """Remove the signs of disks that are no export any more. Raises QmpError, libvirtError."""
    xml = domain_xml.parse(domain.XMLDesc())
    used = {f"libvirt-{each.get('index')}" for each in xml.findall("devices/disk//source") if each.get("index")}
    for node in qmp.execute(domain, "query-named-block-nodes", flat=True):
        name = node["node-name"]
        if name.startswith(f"{DONE}-") and name.removeprefix(f"{DONE}-") not in used:
            with suppress(qmp.QmpError):
                qmp.execute(domain, "blockdev-del", node_name=name)


def _nbd(source: ET.Element, storage: str, top: dict[str, Any]) -> dict[str, Any]:
    host = source.find("host")
    if host is not None and host.get("transport") == "unix":
        server = {"type": "unix", "path": host.get("socket", "")}
    else:
        given = host if host is not None else ET.Element("host")
        server = {"type": "inet", "host": given.get("name", ""), "port": given.get("port", "10809")}
    options: dict[str, Any] = {
        "driver": "nbd",
        "server": server,
        "export": source.get("name", ""),
        "cache": {"direct": bool(top["cache"]["direct"]), "no-flush": bool(top["cache"]["no-flush"])},
        "auto-read-only": True,
        "discard": "unmap",
        "reconnect-delay": RECONNECT_DELAY_S,
        "open-timeout": OPEN_TIMEOUT_S,
    }
    if source.get("tls") == "yes":
        options["tls-creds"] = f"obj{storage}_tls0"  # the object that libvirt has made for its own node
        if source.get("tlsHostname"):
            options["tls-hostname"] = source.get("tlsHostname")
    return options


def _reopen(domain: Any, disk: ET.Element, top: dict[str, Any], file: str) -> None:
    driver = disk.find("driver")
    given = driver if driver is not None else ET.Element("driver")
    options: dict[str, Any] = {
        "driver": "raw",
        "node-name": top["node-name"],
        "read-only": bool(top["ro"]),
        "cache": {"direct": bool(top["cache"]["direct"]), "no-flush": bool(top["cache"]["no-flush"])},
        "discard": given.get("discard", "ignore"),
        "detect-zeroes": top.get("detect_zeroes", "off"),
        "file": file,
    }
    qmp.execute(domain, "blockdev-reopen", options=[options])
