"""An earlier instant of a writer session, read while the session goes on being written.

Not libvirt's own pull-mode backup: that starts an NBD server of its own, and a QEMU process has one, which serves the
session. The same is done by QMP: scratch images get the session's images as their backing, one transaction starts
backup jobs that copy nothing but what is about to be overwritten, and the session's server exports the scratch images.
https://www.qemu.org/docs/master/interop/live-block-operations.html

The scratch volumes are attached as disks of the session, so that libvirt labels and locks them; on a SCSI bus, whose
disks can be taken out of a machine that never runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, images, overlays, qmp
from drivers.libvirt.connection import Connection
from drivers.libvirt.mover import Mover, Session, export_id, mark_of, write_mark
from drivers.libvirt.reach import Reach
from whimbrel.errors import Conflict, NotFound, NotReady, Unavailable, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model.point import DiskPoint, OpenPoint

END_TIMEOUT_S = 30.0
POLL_S = 0.05
SCRATCH = "frozen"


class FrozenWriters:
    """Frozen points of mover sessions on one host; at most one for each session."""

    def __init__(self, connection: Connection, mover: Mover, reach: Reach) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach

    def freeze(self, key: str, point: str, *, migration: str) -> OpenPoint:
        """See ``VolumePort.freeze_writer``."""
        with (
            alone(self._connection.uri, "frozen", key),
            self._connection.using(f"freezing writer {key}", point=point) as conn,
        ):
            session = self._mover.find(key)
            if session is None:
                raise NotFound(f"there is no writer session {key}", writer=key)
            mark = mark_of(session.domain)
            if mark.get("migration") != migration or mark.get("mode") != "write":
                raise Conflict(f"mover session {key} is no writer of migration {migration}")
            held = mark.get("frozen")
            if held is not None and held != point:
                raise Conflict(f"writer session {key} has point {held} frozen", point=point)
            if domain_xml.parse(session.domain.XMLDesc()).find("devices/controller[@type='scsi']") is None:
                raise Unsupported(f"writer session {key} was opened by an earlier version, which could not freeze it")
            if held is not None and self._whole(session):
                return self._point(session, mark)
            exports = {export["id"] for export in qmp.execute(session.domain, "query-block-exports")}
            if not {export_id(disk) for disk in session.nodes} <= exports:
                raise NotReady(f"writer session {key} does not serve its disks yet")
            # What an attempt that was killed has left is no state that anybody was told of.
            self._clear(conn, key, session)
            mark.set("frozen", point)
            mark.set("frozen_at", datetime.now(UTC).isoformat(timespec="microseconds"))
            write_mark(session.domain, mark)
            try:
                self._begin(conn, key, session, mark, migration)
            except (qmp.QmpError, libvirt.libvirtError):
                with suppress(qmp.QmpError, libvirt.libvirtError, NotReady):
                    self._clear(conn, key, session)
                raise
            return self._point(session, mark)

    def thaw(self, key: str, point: str) -> None:
        """See ``VolumePort.thaw_writer``."""
        with (
            alone(self._connection.uri, "frozen", key),
            self._connection.using(f"thawing writer {key}", point=point) as conn,
        ):
            session = self._mover.find(key)
            if session is None:
                self._remove_scratch(conn, key)
            elif mark_of(session.domain).get("frozen") == point:
                self._clear(conn, key, session)

    def close(self, key: str) -> None:
        """Close the session itself and what was frozen of it; see ``VolumePort.close_writer``."""
        with alone(self._connection.uri, "frozen", key):
            with self._connection.using(f"closing writer {key}"):
                session = self._mover.find(key)
                frozen = session is None or mark_of(session.domain).get("frozen") is not None
            # A QEMU that leaves ends its jobs and its server by itself.
            self._mover.close(key)
            if frozen:
                with self._connection.using(f"removing what was frozen of {key}") as conn:
                    self._remove_scratch(conn, key)

    def _begin(self, conn: Any, key: str, session: Session, mark: ET.Element, migration: str) -> None:
        domain = session.domain
        scratch = {
            disk: self._attach(conn, session, disk, index, f"{_prefix(key)}{disk}-{migration}")
            for index, disk in enumerate(session.nodes)
        }
        qmp.execute(
            domain,
            "transaction",
            actions=[
                {
                    "type": "blockdev-backup",
                    "data": {
                        "job-id": _job(index),
                        "device": session.nodes[disk].name,
                        "target": scratch[disk],
                        "sync": "none",
                        "filter-node-name": _filter(index),
                    },
                }
                for index, disk in enumerate(session.nodes)
            ],
        )
        for index, disk in enumerate(session.nodes):
            qmp.execute(
                domain,
                "block-export-add",
                type="nbd",
                id=_export(index),
                name=_export_name(mark, disk),
                node_name=scratch[disk],
                writable=False,
            )

    def _attach(self, conn: Any, session: Session, disk: str, index: int, name: str) -> str:
        """Make the disk's scratch volume and give it to the session; name of its node."""
        domain, node = session.domain, session.nodes[disk]
        pool, _ = overlays.beside(conn, node.filename, name)
        volume = pool.createXML(_volume_xml(name, node.size_bytes), 0)
        domain.attachDevice(_disk_xml(volume.path(), index))
        for found in qmp.execute(domain, "query-block"):
            top = found.get("inserted") or {}
            if top.get("file") == volume.path():
                # The state below is the session's own node: its writes and our reads are kept in order there.
                below = {"driver": "qcow2", "node-name": top["node-name"], "read-only": False}
                files = {node["node-name"]: node for node in qmp.execute(domain, "query-named-block-nodes", flat=True)}
                storage = _storage(files, volume.path())
                qmp.execute(domain, "blockdev-reopen", options=[{**below, "file": storage, "backing": node.name}])
                return str(top["node-name"])
        raise Unavailable(f"scratch volume {name} was attached and is not there")

    @staticmethod
    def _whole(session: Session) -> bool:
        """Whether the point that the mark names is served, all of it."""
        wanted = range(len(session.nodes))
        exports = {export["id"] for export in qmp.execute(session.domain, "query-block-exports")}
        jobs = {job["id"]: job["status"] for job in qmp.execute(session.domain, "query-jobs")}
        return all(_export(index) in exports and jobs.get(_job(index)) == "running" for index in wanted)

    def _clear(self, conn: Any, key: str, session: Session) -> None:
        """End what is frozen or half frozen, and forget it. Raises QmpError, libvirtError, NotReady."""
        domain = session.domain
        count = len(session.nodes)
        for index in range(count):
            _unless_gone(domain, "block-export-del", id=_export(index), mode="hard")
        self._until(
            domain, lambda: not {_export(i) for i in range(count)} & _ids(qmp.execute(domain, "query-block-exports"))
        )
        for index in range(count):
            _unless_gone(domain, "block-job-cancel", device=_job(index), force=True)
        self._until(domain, lambda: not {_job(i) for i in range(count)} & _ids(qmp.execute(domain, "query-jobs")))
        for disk in _scratch_disks(domain):
            domain.detachDevice(ET.tostring(disk, encoding="unicode"))
        self._until(domain, lambda: not _scratch_disks(domain))
        self._remove_scratch(conn, key)
        mark = mark_of(domain)
        if mark.attrib.pop("frozen", None) is not None:
            mark.attrib.pop("frozen_at", None)
            write_mark(domain, mark)

    @staticmethod
    def _until(domain: Any, done: Any) -> None:
        deadline = time.monotonic() + END_TIMEOUT_S
        while not done():
            if time.monotonic() > deadline:
                raise NotReady("what was frozen has not ended yet", session=domain.name())
            time.sleep(POLL_S)

    @staticmethod
    def _remove_scratch(conn: Any, key: str) -> None:
        """Remove the scratch volumes of a session, also those of one that died."""
        for pool, volume in images.all_volumes(conn):
            name = volume.name()
            if name.startswith(_prefix(key)):
                overlays.remove(conn.storagePoolLookupByName(pool), name)

    def _point(self, session: Session, mark: ET.Element) -> OpenPoint:
        return OpenPoint(
            key=mark.get("frozen", ""),
            vm_ref=session.domain.name(),
            kind="live",
            taken_at=datetime.fromisoformat(mark.get("frozen_at", "")),
            token=None,
            disks=tuple(
                DiskPoint(
                    key=disk,
                    size_bytes=node.size_bytes,
                    endpoint=self._reach.endpoint(session.address, _export_name(mark, disk)),
                )
                for disk, node in session.nodes.items()
            ),
        )


def _storage(nodes: Mapping[str, Any], path: str) -> str:
    """Name of the node that reads and writes the file itself."""
    return next(name for name, node in nodes.items() if node["file"] == path and node["drv"] not in qmp.IMAGE_DRIVERS)


def _ids(shown: Any) -> set[str]:
    return {entry["id"] for entry in shown}


def _scratch_disks(domain: Any) -> list[ET.Element]:
    """The scratch volumes that a session has as disks."""
    found = domain_xml.parse(domain.XMLDesc()).findall("devices/disk[@device='disk']")
    return [disk for disk in found if disk.find("target[@bus='scsi']") is not None]


def _unless_gone(domain: Any, command: str, **arguments: Any) -> None:
    try:
        qmp.execute(domain, command, **arguments)
    except qmp.QmpError as error:
        if not any(word in error.message for word in ("not found", "Failed to find", "is not found")):
            raise


def _prefix(key: str) -> str:
    """Beginning of the names of a session's scratch volumes; they end like all volumes of the migration."""
    return f"{key}-{SCRATCH}-"


def _export_name(mark: ET.Element, disk: str) -> str:
    """Of this state only: a reader that comes back never finds a later one under the name it knows."""
    return f"{mark.get('frozen')}@{mark.get('frozen_at')}/{disk}"


def _job(index: int) -> str:
    return f"whimbrel-frozen-{index}"


def _filter(index: int) -> str:
    return f"whimbrel-cbw-{index}"


def _export(index: int) -> str:
    return f"whimbrel-frozen-{index}"


def _volume_xml(name: str, size_bytes: int) -> str:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size_bytes)
    ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": "qcow2"})
    ET.SubElement(target, "compat").text = "1.1"
    return ET.tostring(volume, encoding="unicode")


def _disk_xml(path: str, index: int) -> str:
    """Without a backing of its own (see ``_attach``). What it holds need not outlive QEMU."""
    block = path.startswith("/dev/")
    node = ET.Element("disk", {"type": "block" if block else "file", "device": "disk"})
    ET.SubElement(node, "driver", {"name": "qemu", "type": "qcow2", "cache": "unsafe"})
    ET.SubElement(node, "source", {"dev" if block else "file": path})
    ET.SubElement(node, "backingStore")
    ET.SubElement(node, "target", {"dev": f"sd{chr(ord('a') + index)}", "bus": "scsi"})
    return ET.tostring(node, encoding="unicode")
