"""A VM that runs on an NBD export put onto the raw volume that the export has filled, by libvirt's own block jobs.

Stages of a running VM, each told by its live definition alone, so that whoever calls next goes on:

1. on the export. An external snapshot puts an empty overlay ``in`` over it. From now on nothing writes the export,
   and QEMU has flushed what it wrote: the volume is still.
2. on ``in``. A shallow block copy moves the VM to a second overlay ``out``, whose base is the volume itself.
3. on ``out``. An active commit brings it into the volume.
4. on the volume. The persistent definition is written as it would have been without the export; overlays go.

libvirt changes the persistent definition with each pivot, so a VM that stops at any stage starts again with all its
data as long as the server is there (stage 2) or without it (3, 4). For a VM that is off, the overlay that its
definition names, if any, is committed by a mover session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import libvirt

from drivers.libvirt import domain_xml, domains, overlays, patience, served_xml
from drivers.libvirt.overlays import Merger
from drivers.libvirt.session_xml import Base, SessionDisk
from whimbrel.errors import Conflict, NotReady
from whimbrel.model import naming
from whimbrel.model.vm import TargetDisk

READY_TIMEOUT_S = 60.0
POLL_S = 0.02
MAX_STEPS = 12
"""Six are needed; a job that fails costs two more."""
FLUSH_ATTEMPTS = 20
FLUSH_PAUSE_S = 0.5

Stage = Literal["export", "in", "out", "volume"]
SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)
COPY = (
    libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
    | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
)
"""Never SYNCHRONOUS_WRITES: libvirt gives the copy its base only at the pivot, and QEMU would pass a guest's write of
part of a cluster on to it as it is; the rest of that cluster would be zeros in place of the volume's bytes."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The volume of a disk, and the overlays beside it; their names end with the migration, so they are ours."""

    pool: Any
    volume: str
    into: str
    out: str

    @classmethod
    def of(cls, conn: Any, disk: TargetDisk, migration: str) -> Paths:
        """Raises NotFound."""
        volume = disk.volume.location
        pool, into = overlays.beside(conn, volume, overlay_name(disk, "in", migration))
        return cls(pool, volume, into, f"{volume.rpartition('/')[0]}/{overlay_name(disk, 'out', migration)}")

    def stage(self, path: str | None, *, served: bool) -> Stage | None:
        """Which stage a disk on ``path`` is in; None for a disk that is somewhere else."""
        known: dict[str | None, Stage] = {self.volume: "volume", self.into: "in", self.out: "out"}
        return known.get(path, "export" if served and path is None else None)


def overlay_name(disk: TargetDisk, which: Literal["in", "out"], migration: str) -> str:
    """Name of the overlay that takes writes on the way ``in`` (over the export) or ``out`` (over the volume)."""
    return f"{disk.volume.name}-{which}-{migration}"


class Switch:
    """Puts one disk of one VM onto its volume."""

    def __init__(
        self, conn: Any, domain: Any, disk: TargetDisk, *, migration: str, merger: Merger, at: Callable[[str], None]
    ) -> None:
        self._conn = conn
        self._domain = domain
        self._disk = disk
        self._key = disk.spec.key
        self._migration = migration
        self._merger = merger
        self._paths = Paths.of(conn, disk, migration)
        self._at = at

    def run(self) -> None:
        """Go on from wherever the disk is. Raises Conflict, NotReady, libvirtError."""
        if self._domain.isActive():
            try:
                self._live()
            except (libvirt.libvirtError, Conflict):
                if self._domain.isActive():
                    raise
                self._cold()  # it went off meanwhile
        else:
            self._cold()
        self._settle()

    # --- running or paused

    def _live(self) -> None:
        steps = {"export": self._snapshot, "in": self._copy, "out": self._commit}
        for _ in range(MAX_STEPS):
            state = self._state(0)
            if state.job:
                self._finish(state)
                continue
            stage = self._stage(state)
            if stage == "volume":
                return
            self._at(stage)
            steps[stage]()
        raise NotReady(f"disk {self._key} is not on its volume yet", disk=self._key)

    def _snapshot(self) -> None:
        named = served_xml.locations(domain_xml.parse(domains.definition(self._domain)))
        if self._paths.into in named:
            raise Conflict(
                f"disk {self._key} runs on its export, but starts on an overlay over it",
                action="shut the VM down and switch it then",
                overlay=self._paths.into,
            )
        self._remove("in")
        xml = (
            f"<domainsnapshot><disks>{self._others()}<disk name='{self._key}' snapshot='external' type='file'>"
            f"<driver type='qcow2'/><source file='{self._paths.into}'/></disk></disks></domainsnapshot>"
        )
        for attempt in range(FLUSH_ATTEMPTS):
            try:
                self._domain.snapshotCreateXML(xml, SNAPSHOT)
                return
            except libvirt.libvirtError as error:
                # QEMU flushes the export first. A client that lost its server needs a request or two to find it again.
                if "IO error" not in str(error) and "Input/output error" not in str(error):
                    raise
                self._remove("in")
                if attempt == FLUSH_ATTEMPTS - 1:
                    raise NotReady(
                        f"the export of disk {self._key} does not take a flush",
                        action="look whether its server runs",
                        cause=error,
                    ) from error
            time.sleep(FLUSH_PAUSE_S)

    def _others(self) -> str:
        states = served_xml.disk_states(domain_xml.parse(self._domain.XMLDesc()))
        return "".join(f"<disk name='{key}' snapshot='no'/>" for key in states if key != self._key)

    def _copy(self) -> None:
        self._remove("out")
        name = overlay_name(self._disk, "out", self._migration)
        overlays.ensure(self._paths.pool, name, Base(self._paths.volume, "raw"), self._disk.volume.size_bytes)
        self._domain.blockCopy(
            self._key,
            f"<disk type='file'><driver type='qcow2'/><source file='{self._paths.out}'/></disk>",
            {},
            COPY,
        )
        self._at("copying")

    def _commit(self) -> None:
        self._aligned("out")
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        self._domain.blockCommit(self._key, self._paths.volume, None, 0, flags)
        self._at("committing")

    def _finish(self, state: served_xml.DiskState) -> None:
        """Wait until a job of ours has caught up, and pivot. Raises Conflict for somebody else's, NotReady."""
        target = {"copy": self._paths.out, "active-commit": self._paths.volume}.get(state.job)
        if target is None or state.mirror != target:
            raise Conflict(f"a block job ({state.job}) of somebody else runs on disk {self._key}", job=state.job)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not state.ready:
            if time.monotonic() > deadline:
                raise NotReady(f"block job {state.job} on disk {self._key} has not caught up yet", disk=self._key)
            time.sleep(POLL_S)
            state = self._state(0)
            if not state.job:
                return  # it has failed, or another attempt has pivoted: the stage tells
        self._at(f"{state.job}-ready")
        self._domain.blockJobAbort(self._key, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def _aligned(self, stage: Stage) -> None:
        """libvirt writes the persistent definition with a pivot; going on without it could lose data at a stop."""
        kept = self._stage(self._state(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if kept == stage:
            return
        path, form = {"out": (self._paths.out, "qcow2"), "volume": (self._paths.volume, "raw")}[stage]
        self._define(path, form)

    # --- off

    def _cold(self) -> None:
        if self._domain.hasManagedSaveImage():
            raise Conflict(
                "the VM's memory was saved with its disks as they are",
                action="start the VM, or discard the saved state, then switch",
            )
        stage = self._stage(self._state(libvirt.VIR_DOMAIN_XML_INACTIVE))
        self._at(f"off-{stage}")
        overlay: Literal["in", "out"] | None = None
        if stage in {"export", "in"}:
            # An overlay that the definition does not name is empty, or libvirt died before it could write it down.
            present = overlays.find(self._paths.pool, overlay_name(self._disk, "in", self._migration))
            overlay = "in" if stage == "in" or present is not None else None
        elif stage == "out":
            overlay = "out"
        if overlay is not None:
            path = {"in": self._paths.into, "out": self._paths.out}[overlay]
            held = SessionDisk(self._key, path, "qcow2", Base(self._paths.volume, "raw"))
            key = f"{naming.PREFIX}-{self._migration}-switch-{self._key}"
            self._merger.merge(key, [held], migration=self._migration)
            self._at("merged")

    # --- both

    def _settle(self) -> None:
        """Write the definition that the VM keeps, then remove what the way left behind."""
        self._define(self._paths.volume, "raw")
        self._at("defined")
        live = self._state(0)
        if self._stage(live) != "volume" or live.job:
            raise NotReady(f"disk {self._key} was started again on the way to its volume", disk=self._key)
        self._remove("in")
        self._remove("out")
        if self._domain.isActive():
            patience.forget(self._domain)

    def _define(self, path: str, form: str) -> None:
        definition = domain_xml.parse(domains.definition(self._domain))
        if served_xml.local(definition, self._key, path, form):
            self._domain = self._conn.defineXML(domain_xml.text_of(definition))

    def _remove(self, which: Literal["in", "out"]) -> None:
        path = {"in": self._paths.into, "out": self._paths.out}[which]
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            if path in served_xml.locations(domain_xml.parse(self._domain.XMLDesc(flags))):
                raise Conflict(f"overlay {path} is still part of disk {self._key}", overlay=path)
        overlays.remove(self._paths.pool, overlay_name(self._disk, which, self._migration))

    def _state(self, flags: int) -> served_xml.DiskState:
        found = served_xml.disk_states(domain_xml.parse(self._domain.XMLDesc(flags))).get(self._key)
        if found is None:
            raise Conflict(f"the VM has no disk {self._key} any more", disk=self._key)
        return found

    def _stage(self, state: served_xml.DiskState) -> Stage:
        stage = self._paths.stage(state.path, served=state.served)
        if stage is None:
            raise Conflict(
                f"disk {self._key} is neither on an export nor on volume {self._disk.volume.name}",
                found=state.path,
                volume=self._paths.volume,
            )
        return stage
