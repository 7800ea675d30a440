"""A point in time of a running or paused VM: a pull-mode backup job that starts together with a checkpoint.

QEMU keeps the old content of blocks that the guest overwrites in scratch files, and serves the frozen state over NBD.
libvirt allows one job per domain; a second ``backupBegin`` waits 30 s for the first and fails, so jobs are looked at
first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import backup_xml, checkpoints, domain_xml, images
from drivers.libvirt.backup_xml import Job
from drivers.libvirt.errors import kind_of, translate
from drivers.libvirt.reach import Address, Reach
from drivers.libvirt.tracking import heal
from whimbrel.errors import BaseLost, Conflict, InvalidPlan, NotFound, NotReady, Unavailable
from whimbrel.model import naming
from whimbrel.model.point import DiskPoint, OpenPoint
from whimbrel.model.vm import DiskSpec

END_TIMEOUT_S = 60.0
BEGIN_ATTEMPTS = 4


def current_job(domain: Any) -> Job | None:
    """The pull-mode backup job that runs on the domain. Raises Conflict for any other kind of job, libvirtError."""
    try:
        if not domain.isActive() or domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
            return None
        job = backup_xml.read_job(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            if domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                return None
            raise Conflict(f"another job runs on {domain.name()}", cause=error) from error
        if code == libvirt.VIR_ERR_OPERATION_INVALID:  # it was switched off meanwhile
            return None
        raise
    if job is None:
        raise Conflict(f"a push-mode backup runs on {domain.name()}")
    return job


class LivePoints:
    """Opens, adopts and ends backup jobs."""

    def __init__(self, reach: Reach, scratch_dir: str | None) -> None:
        self._reach = reach
        self._scratch_dir = scratch_dir

    def open(
        self, conn: Any, domain: Any, disks: Sequence[str], *, key: str, since: str | None, migration: str, track: bool
    ) -> OpenPoint:
        """See ``PointInTimePort.open``; the domain is active. Raises libvirtError besides."""
        xml = domain_xml.parse(domain.XMLDesc())
        specs = {disk.key: disk for disk in images.disk_specs(conn, domain, xml, deep=True)}
        missing = [disk for disk in disks if disk not in specs]
        if missing:
            raise NotFound(f"{domain.name()} has no disk {missing[0]}", disk=missing[0])
        wanted = {disk: specs[disk] for disk in disks}
        job = self._adopt(domain, wanted, key=key, since=since, migration=migration)
        if job is None:
            job = self._begin(conn, domain, wanted, key=key, since=since, migration=migration, track=track)
        return self._point(domain, wanted, job, key)

    def close(self, conn: Any, domain: Any, key: str) -> None:
        """End the job of this key, if it runs, and remove its scratch files. Raises libvirtError, NotReady."""
        job = current_job(domain)
        if job is not None and job.key == key:
            self.end(conn, domain, job)

    def end(self, conn: Any, domain: Any, job: Job) -> None:
        """Abort a job of ours, wait until it is gone, and see to it that nothing is left over."""
        try:
            domain.abortJob()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise
        deadline = time.monotonic() + END_TIMEOUT_S
        while current_job(domain) is not None:
            if time.monotonic() > deadline:
                raise NotReady("the backup job has not ended yet", vm=domain.name())
            time.sleep(0.1)
        for disk in job.disks:
            self._remove_scratch(conn, disk.scratch)
        self._reach.clean(job.address)

    def _adopt(
        self, domain: Any, wanted: Mapping[str, DiskSpec], *, key: str, since: str | None, migration: str
    ) -> Job | None:
        """The job that serves this very point already; one of ours for another point is ended."""
        job = current_job(domain)
        if job is None:
            return None
        owner = job.key
        if owner is None or not naming.owns_point(owner, migration):
            raise Conflict(
                f"a backup job of somebody else runs on {domain.name()}",
                action="wait for it or end it (virsh domjobabort)",
                scratch=job.disks[0].scratch if job.disks else "",
            )
        served = {disk.name for disk in job.disks}
        if owner == key and served >= set(wanted):
            bases = self._bases(domain, wanted, since)
            if all(bases.get(disk.name) == disk.since for disk in job.disks if disk.name in wanted):
                return job
        self.end(domain.connect(), domain, job)
        return None

    def _begin(
        self,
        conn: Any,
        domain: Any,
        wanted: Mapping[str, DiskSpec],
        *,
        key: str,
        since: str | None,
        migration: str,
        track: bool,
    ) -> Job:
        """Start the job; what stands in the way and is ours is removed, and it is tried again."""
        bases = self._bases(domain, wanted, since)
        tracked = [disk for disk, spec in wanted.items() if spec.trackable] if track else []
        self._forget_earlier_attempt(domain, key, migration)
        others = [disk.key for disk in domain_xml.disks(_xml(domain)) if disk.location and disk.key not in wanted]
        untracked = [disk for disk in (*wanted, *others) if disk not in tracked]
        scratch = {disk: self._scratch(conn, spec, key) for disk, spec in wanted.items()}
        checkpoint = backup_xml.checkpoint_xml(key, tracked, untracked) if tracked else None
        addresses = self._reach.candidates(key)
        address = next(addresses)
        for attempt in range(BEGIN_ATTEMPTS + 16):
            self._reach.prepare(address)
            tls = self._reach.transport == "tls"
            backup = backup_xml.backup_xml(address, scratch, others, since=bases, tls=tls)
            try:
                domain.backupBegin(backup, checkpoint)
            except libvirt.libvirtError as error:
                job = self._after_failure(
                    conn, domain, error, key=key, since=since, migration=migration, scratch=scratch
                )
                if job is not None:
                    return job
                if "in use" in str(error):
                    following = next(addresses, None)
                    if following is None:
                        raise translate(error, f"opening point {key}") from error
                    address = following
                elif attempt >= BEGIN_ATTEMPTS:
                    raise translate(error, f"opening point {key}") from error
                continue
            job = current_job(domain)
            if job is None or job.key != key:
                raise Unavailable(f"the backup job of point {key} ended as soon as it had begun", vm=domain.name())
            return job
        raise Unavailable(f"the backup job of point {key} could not be started", vm=domain.name())

    def _after_failure(
        self,
        conn: Any,
        domain: Any,
        error: libvirt.libvirtError,
        *,
        key: str,
        since: str | None,
        migration: str,
        scratch: Mapping[str, str],
    ) -> Job | None:
        """Make way for another attempt, or raise what the failure means.

        Returns the job if an orphaned attempt of this same step has started it meanwhile.
        """
        text = str(error)
        kind = kind_of(error.get_error_code() or -1, text)
        job = current_job(domain)
        if job is not None:
            if job.key == key:
                return job
            raise Conflict(f"another backup job was started on {domain.name()}", other=job.key, cause=error) from error
        if "for backup of" in text and "exists" in text:
            for path in scratch.values():
                self._remove_scratch(conn, path)
            return None
        if "in use" in text:
            return None
        if kind is BaseLost and since is not None:
            raise BaseLost(f"what changed since {since} is not known any more: {text}", cause=error, since=since)
        if ("itmap" in text or kind is BaseLost) and heal(domain, migration, spare=since, also=key):
            return None
        raise translate(error, f"opening point {key}") from error

    @staticmethod
    def _bases(domain: Any, wanted: Mapping[str, DiskSpec], since: str | None) -> dict[str, str]:
        """Disk -> checkpoint to compare with; disks that the checkpoint did not track are read in full."""
        if since is None:
            return {}
        base = checkpoints.find(checkpoints.read(domain), since)
        if base is None:
            raise BaseLost(f"the VM has no checkpoint {since}", since=since, vm=domain.name())
        return {disk: since for disk in wanted if disk in base.bitmaps}

    @staticmethod
    def _forget_earlier_attempt(domain: Any, key: str, migration: str) -> None:
        """Remove a checkpoint of this name whose job is over: nobody knows what was read through it.

        libvirt merges its bitmap into its parent's, so what changed since earlier checkpoints stays known.
        """
        try:
            checkpoint = domain.checkpointLookupByName(key)
            if current_job(domain) is not None:
                # It came into being with a job that another worker has just begun; ``backupBegin`` will find that.
                return
            checkpoint.delete()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return
            heal(domain, migration, spare=None, also=key)
            with suppress(libvirt.libvirtError):
                checkpoints.forget_metadata(domain, key)

    def _scratch(self, conn: Any, spec: DiskSpec, key: str) -> str:
        """Where QEMU is to keep old blocks: beside the image, unless a directory is configured."""
        directory = self._scratch_dir
        if directory is None and not spec.location.startswith("/dev/"):
            directory = spec.location.rpartition("/")[0]
        directory = directory or _first_directory_pool(conn)
        if not directory:
            raise InvalidPlan(
                f"there is no place for the scratch file of disk {spec.key}", action="set scratch_dir for this cloud"
            )
        return str(Path(directory) / backup_xml.scratch_name(key, spec.key))

    def _remove_scratch(self, conn: Any, path: str) -> None:
        """Remove a scratch file that libvirt left behind (after both it and QEMU were killed)."""
        if not path.endswith(backup_xml.SCRATCH_SUFFIX):
            return
        if self._reach.transport == "unix":
            Path(path).unlink(missing_ok=True)
        with suppress(libvirt.libvirtError):
            directory = path.rpartition("/")[0]
            for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                if _directory(pool) == directory:
                    pool.refresh()
                    pool.storageVolLookupByName(path.rpartition("/")[2]).delete(0)

    def _point(self, domain: Any, wanted: Mapping[str, DiskSpec], job: Job, key: str) -> OpenPoint:
        """The open point as its job and checkpoint tell it; the same for every attempt."""
        checkpoint = checkpoints.find(checkpoints.read(domain), key)
        if checkpoint is not None:
            taken_at = checkpoint.taken_at
        else:
            elapsed = timedelta(milliseconds=int(domain.jobStats().get("time_elapsed", 0)))
            taken_at = (datetime.now(UTC) - elapsed).replace(microsecond=0)
        served = {disk.name: disk for disk in job.disks}
        points = []
        for disk, spec in wanted.items():
            entry = served[disk]
            contexts = (f"qemu:dirty-bitmap:{entry.bitmap}",) if entry.bitmap else ()
            address = self._connectable(job.address)
            points.append(
                DiskPoint(
                    key=disk,
                    size_bytes=spec.size_bytes,
                    endpoint=self._reach.endpoint(address, entry.export, dirty_contexts=contexts),
                    tracked=bool(contexts),
                )
            )
        return OpenPoint(
            key=key,
            vm_ref=domain.UUIDString(),
            kind="live",
            taken_at=taken_at,
            token=key if checkpoint is not None else None,
            since=job.since,
            disks=tuple(points),
        )

    def _connectable(self, address: Address) -> Address:
        return address if address.unix_path is not None else Address(host=self._reach.nbd_host, port=address.port)


def _xml(domain: Any) -> ET.Element:
    return domain_xml.parse(domain.XMLDesc())


def _directory(pool: Any) -> str | None:
    target = ET.fromstring(pool.XMLDesc()).findtext("target/path")  # noqa: S314 - see the import
    return target.rstrip("/") if target else None


def _first_directory_pool(conn: Any) -> str | None:
    for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        if ET.fromstring(pool.XMLDesc()).get("type") in {"dir", "fs", "netfs"}:  # noqa: S314 - see the import
            return _directory(pool)
    return None
