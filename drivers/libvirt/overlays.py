"""Overlays: qcow2 files next to an image that take its writes, and how they are brought into it while no VM runs.

Brought back by QEMU's own ``block-commit`` in a mover session, not by libvirt's: libvirt takes a base's bitmaps for
broken when the overlay has none of the same names, while QEMU marks in them what the commit writes.
https://www.qemu.org/docs/master/interop/live-block-operations.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import images, qmp
from drivers.libvirt.connection import Connection
from drivers.libvirt.mover import Mover, Session
from drivers.libvirt.reach import Reach
from drivers.libvirt.session_xml import Base, SessionDisk
from whimbrel.dataplane.devices import open_device
from whimbrel.errors import Conflict, DataMismatch, NotFound, NotReady, Unavailable
from whimbrel.model.endpoint import NbdEndpoint

COMMIT_TIMEOUT_S = 90.0
"""Below the shortest time that an activity has; what is not done by then goes on with the next call."""
POLL_S = 0.05
COMPARE_BYTES = 1 << 20
NOTE = "overlay"
"""Sessions with this note work on overlays; they are no points and no writers."""

log = logging.getLogger(__name__)


def beside(conn: Any, path: str, name: str) -> tuple[Any, str]:
    """The pool that holds the image at ``path``, and the path that ``name`` has in it. Raises NotFound."""
    facts = images.find_volume(conn, path)
    if facts is None:
        for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            pool.refresh()
        facts = images.find_volume(conn, path)
    if facts is None:
        raise NotFound(f"{path} lies in no active storage pool", action="make a pool of its directory", path=path)
    return conn.storagePoolLookupByName(facts.pool), f"{path.rpartition('/')[0]}/{name}"


def find(pool: Any, name: str) -> Any | None:
    """The overlay's volume, looked for anew. Raises libvirtError."""
    pool.refresh()
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise


def ensure(pool: Any, name: str, base: Base, size_bytes: int) -> None:
    """Make an empty overlay over ``base``, or find the one made before. Raises Conflict, libvirtError."""
    found = find(pool, name)
    if found is None:
        try:
            pool.createXML(_xml(name, base, size_bytes), 0)
        except libvirt.libvirtError:
            if find(pool, name) is None:  # an orphaned attempt may have been faster
                raise
        found = find(pool, name)
    below = images.volume_facts(found).backing if found is not None else None
    if below != base.location:
        raise Conflict(f"volume {name} is there and is no overlay over {base.location}", volume=name, found=below)


def remove(pool: Any, name: str) -> None:
    """Delete an overlay; one that is not there is fine. Raises libvirtError."""
    found = find(pool, name)
    if found is None:
        return
    try:
        found.delete(0)
    except libvirt.libvirtError:
        if find(pool, name) is not None:
            raise


def _xml(name: str, base: Base, size_bytes: int) -> str:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size_bytes)
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": "qcow2"})
    ET.SubElement(target, "compat").text = "1.1"
    below = ET.SubElement(volume, "backingStore")
    ET.SubElement(below, "path").text = base.location
    ET.SubElement(below, "format", {"type": base.format})
    return ET.tostring(volume, encoding="unicode")


class Merger:
    """Brings overlays into their bases while no VM has them open."""

    def __init__(self, connection: Connection, mover: Mover, reach: Reach) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach

    def merge(self, key: str, overlays: Sequence[SessionDisk], *, migration: str) -> int:
        """Write what the overlays hold into their bases, compare, and close all; bytes written. The overlays stay.

        May be killed and called again at any moment: until an overlay is removed, overlay and base together are the
        truth. Raises Conflict (an image is in use), DataMismatch, NotReady.
        """
        self._mover.close(key, migration=migration)  # an earlier attempt; what it wrote is written again
        session = self._mover.open(key, overlays, migration=migration, writable=True, note=NOTE)
        try:
            with self._connection.using("bringing overlays into their images"):
                tops = {disk.key: session.nodes[disk.key].name for disk in overlays}
                done = {disk.key: self._commit(session, disk.key) for disk in overlays}
                for disk in overlays:
                    self._compare(session, disk, tops[disk.key])
        finally:
            self._mover.close(key, migration=migration)
        return sum(done.values())

    def _commit(self, session: Session, key: str) -> int:
        job = f"whimbrel-commit-{key}"
        qmp.execute(
            session.domain,
            "block-commit",
            job_id=job,
            device=session.nodes[key].name,
            auto_finalize=True,
            auto_dismiss=False,
        )
        copied, deadline = 0, time.monotonic() + COMMIT_TIMEOUT_S
        while time.monotonic() < deadline:
            found = next(each for each in qmp.execute(session.domain, "query-jobs") if each["id"] == job)
            copied = max(copied, int(found["current-progress"]))
            if found["status"] == "ready":
                qmp.execute(session.domain, "job-complete", id=job)
            elif found["status"] == "concluded":
                qmp.execute(session.domain, "job-dismiss", id=job)
                if found.get("error"):
                    raise Conflict(f"disk {key} could not take its overlay: {found['error']}", disk=key)
                return copied
            time.sleep(POLL_S)
        raise NotReady(f"the overlay of disk {key} is still being written into the image", disk=key)

    def _compare(self, session: Session, disk: SessionDisk, top: str) -> None:
        """What the overlay holds must read the same from the base alone."""
        base = qmp.disk_nodes(session.domain)[session.nodes[disk.key].alias].name
        if base == top:
            raise NotReady(f"the overlay of disk {disk.key} was not brought into the image", disk=disk.key)
        names = {}
        for what, node, depth in (("overlay", top, True), ("base", base, False)):
            names[what] = f"{disk.key}-{what}"
            qmp.execute(
                session.domain,
                "block-export-add",
                type="nbd",
                id=f"whimbrel-{names[what]}",
                name=names[what],
                node_name=node,
                writable=False,
                allocation_depth=depth,
            )
        overlay = self._reach.endpoint(session.address, names["overlay"], dirty_contexts=("qemu:allocation-depth",))
        try:
            _compare(overlay, self._reach.endpoint(session.address, names["base"]), disk)
        except Unavailable as error:
            # A worker that reaches only the cloud's API cannot compare; QEMU's own word is all it has then.
            log.warning("disk %s was not compared after its overlay was merged: %s", disk.key, error)


def _compare(overlay: NbdEndpoint, base: NbdEndpoint, disk: SessionDisk) -> None:
    """Compare the extents of allocation depth 1 (bit 0 set; depth 3 has it too, which compares more than needed)."""
    ours, below = open_device(overlay), open_device(base)
    try:
        left, right = ours.lane(), below.lane()
        for extent in ours.changed():
            for start in range(extent.start, extent.end, COMPARE_BYTES):
                length = min(COMPARE_BYTES, extent.end - start)
                one, other = bytearray(length), bytearray(length)
                left.submit_read(start, memoryview(one))
                right.submit_read(start, memoryview(other))
                left.reap()
                right.reap()
                if one != other:
                    raise DataMismatch(
                        f"disk {disk.key} differs from its overlay after they were merged; the overlay is kept",
                        disk=disk.key,
                        overlay=disk.location,
                        offset=start,
                    )
    finally:
        ours.close()
        below.close()
