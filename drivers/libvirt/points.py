"""Points in time of libvirt VMs: ``whimbrel.ports.point_in_time.PointInTimePort``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import libvirt

from drivers.libvirt import checkpoints, domain_xml, domains, images, overlays, qmp, served_xml, tracking
from drivers.libvirt.connection import Connection
from drivers.libvirt.mover import Mover
from drivers.libvirt.points_cold import ColdPoints, session_disk
from drivers.libvirt.points_live import LivePoints, current_job
from drivers.libvirt.points_stream import StreamPoints, only_streams
from drivers.libvirt.reach import Reach
from whimbrel.errors import Conflict, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model import naming
from whimbrel.model.point import OpenPoint


class LibvirtPoints:
    """``PointInTimePort`` over one connection."""

    def __init__(
        self, cloud: str, connection: Connection, mover: Mover, reach: Reach, *, scratch_dir: str | None = None
    ) -> None:
        self._connection = connection
        self._mover = mover
        self._reach = reach
        self._live = LivePoints(reach, scratch_dir)
        self._cold = ColdPoints(mover, reach)
        self._stream = StreamPoints(cloud)

    def open(
        self,
        ref: str,
        disks: Sequence[str],
        *,
        key: str,
        since: str | None = None,
        migration: str,
        track: bool = True,
        resting: bool = False,
    ) -> OpenPoint:
        """See the port: live for a VM that runs or is paused, cold for one that is off; only cold through streams.

        A cold point is the disks themselves, whether they are ``resting`` or not.
        """
        del resting
        if not naming.owns_point(key, migration):
            raise Conflict(f"point {key} is not a name of migration {migration}", key=key)
        with (
            alone(self._connection.uri, "points", ref),
            self._connection.using(f"opening point {key} of {ref}", vm=ref, key=key) as conn,
        ):
            domain = domains.get(conn, ref)
            if only_streams(conn, self._reach):
                return self._stream.open(conn, domain, disks, key=key, since=since, migration=migration)
            served = served_xml.served_keys(domain_xml.parse(domain.XMLDesc()))
            if served & set(disks):
                raise Unsupported(f"disk {min(served)} is served by another process: read it there", vm=ref)
            if not domain.isActive():
                try:
                    return self._cold.open(conn, domain, disks, key=key, since=since, migration=migration)
                except Conflict:
                    if not domain.isActive():
                        raise
                    # It was started between our look and our lock on its images.
            return self._live.open(conn, domain, disks, key=key, since=since, migration=migration, track=track)

    def close(self, ref: str, key: str, *, migration: str) -> None:
        """End reading and remove temporary files; tokens stay. A point that is not open is fine."""
        if not naming.owns_point(key, migration):
            raise Conflict(f"point {key} is not a name of migration {migration}", key=key)
        with alone(self._connection.uri, "points", ref):
            with self._connection.using(f"closing point {key} of {ref}", vm=ref, key=key) as conn:
                domain = domains.find(conn, ref)
                streams = only_streams(conn, self._reach)
                if domain is not None and streams:
                    self._stream.close(domain, key, migration=migration)
                elif domain is not None:
                    self._live.close(conn, domain, key)
            if not streams:
                self._mover.close(key, migration=migration)

    def forget(self, ref: str, *, migration: str, keep: Sequence[str] = ()) -> None:
        """Remove this migration's tokens but ``keep``; see the port. Raises Conflict while a point is open."""
        with (
            alone(self._connection.uri, "points", ref),
            self._connection.using(f"removing tokens from {ref}", vm=ref) as conn,
        ):
            domain = domains.find(conn, ref)
            if domain is None or only_streams(conn, self._reach):
                return  # streams leave no tokens
            with self._images(conn, domain, migration, writable=True) as (holder, nodes):
                self._remove_all(domain, holder, nodes, migration, keep)

    def _remove_all(
        self, domain: Any, holder: Any, nodes: Mapping[str, qmp.Node], migration: str, keep: Sequence[str]
    ) -> None:
        """Newest first, so that every merge goes to a bitmap that is still there."""
        known = checkpoints.read(domain)
        bad = tracking.damage(known, nodes)
        running = bool(domain.isActive())
        for entry in reversed(known):
            if entry.name in keep or not naming.owns_point(entry.name, migration):
                continue
            if running and entry.name not in bad and entry.parent not in bad:
                try:
                    domain.checkpointLookupByName(entry.name).delete()
                    continue
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                        continue
                    if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
                        raise
            tracking.remove(domain, holder, checkpoints.read(domain), self._fresh(domain, holder, nodes), entry.name)
        for disk, node in self._fresh(domain, holder, nodes).items():
            for bitmap in node.bitmaps:
                if naming.owns_point(bitmap.name, migration) and bitmap.name not in keep:
                    checkpoints.remove_bitmap(holder, nodes[disk], bitmap.name)

    @staticmethod
    def _fresh(domain: Any, holder: Any, nodes: Mapping[str, qmp.Node]) -> dict[str, qmp.Node]:
        """The same images asked anew: bitmaps change as others are removed."""
        if not nodes:
            return {}
        if holder.UUIDString() == domain.UUIDString():
            return tracking.running_nodes(domain)
        by_name = {node.name: node for node in qmp.disk_nodes(holder).values()}
        return {disk: by_name[node.name] for disk, node in nodes.items()}

    def owned(self, ref: str, migration: str) -> Sequence[str]:
        """Checkpoints, bitmaps, backup jobs and read sessions of this migration that exist now."""
        with (
            alone(self._connection.uri, "points", ref),
            self._connection.using(f"listing tokens of {ref}", vm=ref) as conn,
        ):
            domain = domains.find(conn, ref)
            found: set[str] = set()
            if only_streams(conn, self._reach):
                return self._stream.owned(domain, migration) if domain is not None else []
            if domain is not None:
                found |= {entry.name for entry in checkpoints.read(domain)}
                with self._images(conn, domain, migration, writable=False) as (_, nodes):
                    found |= {bitmap.name for node in nodes.values() for bitmap in node.bitmaps}
                found |= self._open_job(domain)
            others = {naming.writer_key(migration), *self._mover.sessions(migration, note=overlays.NOTE)}
            sessions = {name for name in self._mover.sessions(migration) if name not in others}
        return sorted({name for name in found if naming.owns_point(name, migration)} | sessions)

    @staticmethod
    def _open_job(domain: Any) -> set[str]:
        try:
            job = current_job(domain)
        except Conflict:
            return set()
        return {job.key} if job is not None and job.key is not None else set()

    @contextmanager
    def _images(
        self, conn: Any, domain: Any, migration: str, *, writable: bool
    ) -> Iterator[tuple[Any, Mapping[str, qmp.Node]]]:
        """A domain that has the VM's qcow2 images open, and the images by disk key.

        The VM itself where it is on; else a session of this migration that has them open; else one for the moment.
        """
        if domain.isActive():
            yield domain, tracking.running_nodes(domain)
            return
        specs = images.disk_specs(conn, domain, domain_xml.parse(domain.XMLDesc()), deep=False)
        held = [session_disk(disk) for disk in specs if disk.format in {"qcow2", "qcow2-v2"} and not disk.read_only]
        if not held:
            yield domain, {}
            return
        holder = self._mover.holding(held[0].location, migration=migration)
        if holder is not None and not writable:
            by_file = {node.filename: node for node in qmp.disk_nodes(holder).values()}
            yield holder, {disk.key: by_file[disk.location] for disk in held if disk.location in by_file}
            return
        key = naming.point_key(migration, 0).rpartition("-")[0] + "-images"
        session = self._mover.open(key, held, migration=migration, writable=writable)
        try:
            yield session.domain, session.nodes
        finally:
            self._mover.close(key, migration=migration)
