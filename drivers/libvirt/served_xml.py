"""Disks of a VM that another process serves over NBD, as XML: written, recognised, and taken back. Pure.

``<disk type='network'>`` by https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from drivers.libvirt import domain_xml, tag
from whimbrel.errors import InvalidPlan, Unsupported
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.vm import TargetDisk

POLICIES = ("error_policy", "rerror_policy")
KEPT = "policies"
"""Attribute of our mark that keeps the policies which served disks had: ``vda=report/,vdb=/``."""


@dataclass(frozen=True, slots=True)
class DiskState:
    """Where one disk of a definition is: a file (``path``) or an NBD export, and the job that moves it."""

    key: str
    path: str | None
    served: bool
    """The disk, or an image below it, is an export."""
    mirror: str | None
    """File that a block job copies to."""
    job: str
    """``copy``, ``active-commit``, or "" without a job."""
    ready: bool


def qemu_user(capabilities: str) -> tuple[int, int] | None:
    """User and group that QEMU processes run under, by a host's capabilities: ``+64055:+64055``; None if untold."""
    for model in domain_xml.parse(capabilities).findall("host/secmodel"):
        if model.findtext("model") == "dac":
            for label in model.findall("baselabel"):
                found = re.fullmatch(r"\+(\d+):\+(\d+)", label.text or "")
                if found is not None:
                    return int(found[1]), int(found[2])
    return None


def serve(node: ET.Element, disk: TargetDisk) -> str:
    """Turn a ``<disk>`` that is on its volume into one on the export; returns the policies it had.

    Errors pause the VM: the guest must never see that its server was away. Raises InvalidPlan, Unsupported.
    """
    served, key = disk.served, disk.spec.key
    driver, source = node.find("driver"), node.find("source")
    if served is None or driver is None or source is None:
        raise InvalidPlan(f"disk {key} is not served")
    if disk.volume.format != "raw" or disk.volume.location.startswith("/dev/"):
        raise Unsupported(
            f"disk {key} cannot be served: volume {disk.volume.name} is no raw file",
            action="choose raw target volumes in a directory pool",
        )
    if disk.spec.read_only:
        raise Unsupported(f"disk {key} is read-only and cannot be switched while the VM runs")
    had = "/".join(driver.get(name, "") for name in POLICIES)
    for name in POLICIES:
        driver.set(name, "stop")
    at = list(node).index(source)
    node.remove(source)
    node.insert(at, _source(served))
    node.set("type", "network")
    return f"{key}={had}"


def _source(served: NbdEndpoint) -> ET.Element:
    source = ET.Element("source", {"protocol": "nbd", "name": served.export})
    if served.unix_path is not None:
        ET.SubElement(source, "host", {"transport": "unix", "socket": served.unix_path})
        return source
    ET.SubElement(source, "host", {"name": served.host or "", "port": str(served.port)})
    source.set("tls", "no" if served.tls is None else "yes")
    if served.tls is not None and served.tls.server_name is not None:
        source.set("tlsHostname", served.tls.server_name)
    return source


def disk_states(domain: ET.Element) -> dict[str, DiskState]:
    """Every disk of a live or persistent definition, by key."""
    found = {}
    for node in domain.findall("devices/disk"):
        target, source, mirror = node.find("target"), node.find("source"), node.find("mirror")
        if target is None:
            continue
        key = target.get("dev", "")
        path = (source.get("file") or source.get("dev")) if source is not None else None
        moved = mirror.find("source") if mirror is not None else None
        found[key] = DiskState(
            key=key,
            path=path,
            served=any(each.get("protocol") == "nbd" for each in node.iter("source")),
            mirror=(moved.get("file") or moved.get("dev")) if moved is not None else None,
            job=mirror.get("job", "") if mirror is not None else "",
            ready=mirror is not None and mirror.get("ready") == "yes",
        )
    return found


def served_keys(domain: ET.Element) -> set[str]:
    """Keys of the disks that are on an export."""
    return {state.key for state in disk_states(domain).values() if state.served}


def local(domain: ET.Element, key: str, path: str, form: str) -> bool:
    """Put a disk of a persistent definition onto an image, with the policies it had; whether anything was changed.

    The same as ``ensure_vm`` writes without ``served`` when ``form`` is raw and ``path`` its volume's.
    """
    before = ET.canonicalize(ET.tostring(domain, encoding="unicode"), strip_text=True)
    for node in domain.findall("devices/disk"):
        target, driver = node.find("target"), node.find("driver")
        if target is None or driver is None or target.get("dev") != key:
            continue
        for name in ("source", "backingStore", "mirror"):
            for child in node.findall(name):
                node.remove(child)
        node.set("type", "file")
        driver.set("type", form)
        node.insert(1, ET.Element("source", {"file": path}))
        if form == "raw":
            _give_policies_back(domain, key, driver)
    return before != ET.canonicalize(ET.tostring(domain, encoding="unicode"), strip_text=True)


def _give_policies_back(domain: ET.Element, key: str, driver: ET.Element) -> None:
    mark = tag.find(domain)
    kept = dict(each.split("=", 1) for each in mark.get(KEPT, "").split(",") if each) if mark is not None else {}
    had = kept.pop(key, None)
    if mark is None or had is None:
        return
    for name, value in zip(POLICIES, had.split("/"), strict=True):
        driver.attrib.pop(name, None)
        if value:
            driver.set(name, value)
    mark.attrib.pop(KEPT)
    if kept:
        mark.set(KEPT, ",".join(f"{name}={value}" for name, value in kept.items()))


def locations(domain: ET.Element) -> set[str]:
    """Paths of all images that a definition names: tops, those below them, and what jobs write to."""
    named = {domain_xml.source_location(each) for each in domain.findall("devices/disk//source")}
    return {path for path in named if path.startswith("/")}
