"""What a migration left behind, read from both clouds and the file system without the project's drivers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from labs.kvm import LabGuest, processes
from labs.stage import CLOUD_NAMES, Stage

POOLS = ("default", "small")


def leftovers(stage: Stage, guest: LabGuest, migration: str, *, allowed: Set[Path] = frozenset()) -> list[str]:
    """Everything that bears the migration's id or serves its work.

    ``allowed`` are files that may stay: images of the rebuilt VM, and what lay in shared directories before.
    """
    found: list[str] = []
    for cloud in CLOUD_NAMES:
        own = set(guest.disk_paths(cloud).values()) if guest.is_defined(cloud) else set()
        parts = (
            _domains(stage, cloud, migration),
            _guest(stage, cloud, guest.name),
            _files(stage, cloud, guest.name, migration, (own if cloud == "a" else own & allowed), allowed),
            _processes(stage, cloud, migration),
        )
        found += [f"{cloud}: {line}" for part in parts for line in part]
    found += [f"state: {path}" for path in (stage.directory / "state").rglob("*") if migration in str(path)]
    return found


def _domains(stage: Stage, cloud: str, migration: str) -> Iterator[str]:
    connection = stage.lab.connect(cloud)
    try:
        for domain in connection.listAllDomains():
            metadata = ET.fromstring(domain.XMLDesc()).find("metadata")
            marked = metadata is not None and migration in ET.tostring(metadata, encoding="unicode")
            if migration in domain.name() or marked:
                yield f"domain {domain.name()}"
    finally:
        connection.close()


def _guest(stage: Stage, cloud: str, name: str) -> Iterator[str]:
    """Backup job, checkpoints and bitmaps of the guest itself, running or not."""
    connection = stage.lab.connect(cloud)
    try:
        try:
            domain = connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        yield from (f"checkpoint {checkpoint.getName()}" for checkpoint in domain.listAllCheckpoints())
        if domain.isActive():
            if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                yield f"a job on {name}"
            yield from _live_bitmaps(domain)
    finally:
        connection.close()


def _live_bitmaps(domain: libvirt.virDomain) -> Iterator[str]:
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-block"}), 0))
    for device in answer["return"]:
        for bitmap in device.get("inserted", {}).get("dirty-bitmaps", []):
            yield f"bitmap {bitmap.get('name', '?')} in QEMU"
    exports = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-block-exports"}), 0))
    yield from (f"NBD export {export['id']}" for export in exports["return"])


def shared_files(stage: Stage) -> set[Path]:
    """What lies in the directories for scratch files and sockets."""
    lab = stage.lab
    return {
        path
        for cloud in CLOUD_NAMES
        for place in (lab.scratch_dir(cloud), lab.nbd_dir(cloud))
        for path in place.iterdir()
    }


def _files(
    stage: Stage, cloud: str, guest: str, migration: str, images: Set[Path], allowed: Set[Path]
) -> Iterator[str]:
    places = [stage.lab.pool_path(cloud, pool) for pool in POOLS]
    for path in (entry for place in places for entry in place.iterdir()):
        if path in images:
            yield from (f"bitmap {name} in {path.name}" for name in stored_bitmaps(path))
        elif migration in path.name or path.name.startswith(f"{guest}-"):
            yield f"file {path}"
    for place in (stage.lab.scratch_dir(cloud), stage.lab.nbd_dir(cloud)):
        yield from (f"file {path}" for path in place.iterdir() if path not in allowed)


def stored_bitmaps(image: Path) -> list[str]:
    """Names of the bitmaps that a qcow2 image holds; [] for a raw one."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True)
    data = json.loads(done.stdout).get("format-specific", {}).get("data", {})
    return [str(bitmap["name"]) for bitmap in data.get("bitmaps", [])]


def _processes(stage: Stage, cloud: str, migration: str) -> Iterator[str]:
    for pid in processes.processes_of(stage.lab.cloud(cloud)):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        name = command.partition("-name ")[2].partition(" ")[0]
        if migration in name:
            yield f"process {pid}: {name}"


def session_pids(stage: Stage, cloud: str, migration: str) -> list[int]:
    """The QEMU processes of this migration's mover sessions."""
    return list(sessions(stage, cloud, migration).values())


def sessions(stage: Stage, cloud: str, migration: str) -> dict[str, int]:
    """Name and process of each of this migration's mover sessions."""
    found = {}
    for line in _processes(stage, cloud, migration):
        process, _, name = line.partition(": ")
        found[name.removeprefix("guest=").partition(",")[0]] = int(process.split()[1])
    return found
