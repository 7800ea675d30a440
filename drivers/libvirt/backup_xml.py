"""XML of a pull-mode backup and its checkpoint, and the reading of a job that runs.

Formats: https://libvirt.org/formatbackup.html and https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from drivers.libvirt.reach import Address

SCRATCH_SUFFIX = ".scratch"


@dataclass(frozen=True, slots=True)
class JobDisk:
    """A disk that a running backup job serves."""

    name: str
    scratch: str
    export: str
    since: str | None
    """Checkpoint that it is compared with; None for a full read."""
    bitmap: str | None
    """Name under which the export offers what changed; None for a full read."""


@dataclass(frozen=True, slots=True)
class Job:
    """A running pull-mode backup job."""

    address: Address
    disks: tuple[JobDisk, ...]

    @property
    def since(self) -> str | None:
        """Checkpoint that the tracked disks are compared with."""
        return next((disk.since for disk in self.disks if disk.since is not None), None)

    @property
    def key(self) -> str | None:
        """Key of the point that this job serves, read from the names of its scratch files."""
        for disk in self.disks:
            name = disk.scratch.rpartition("/")[2]
            ending = f"-{disk.name}{SCRATCH_SUFFIX}"
            if name.endswith(ending):
                return name[: -len(ending)]
        return None


def scratch_name(key: str, disk: str) -> str:
    """File name of the scratch image; it carries the point's key, by which a job is recognised."""
    return f"{key}-{disk}{SCRATCH_SUFFIX}"


def backup_xml(
    address: Address,
    scratch: Mapping[str, str],
    left_out: Sequence[str],
    *,
    since: Mapping[str, str],
    tls: bool = False,
) -> str:
    """``<domainbackup>`` in pull mode for the disks in ``scratch`` (disk -> path of its scratch file).

    ``since`` gives the checkpoint to compare with for each disk that has one; the other disks are read in full.
    """
    backup = ET.Element("domainbackup", {"mode": "pull"})
    if address.unix_path is not None:
        ET.SubElement(backup, "server", {"transport": "unix", "socket": address.unix_path})
    else:
        server = {"transport": "tcp", "name": address.host or "localhost", "port": str(address.port)}
        ET.SubElement(backup, "server", {**server, "tls": "yes"} if tls else server)
    disks = ET.SubElement(backup, "disks")
    for name, path in scratch.items():
        mode = {"backupmode": "incremental", "incremental": since[name]} if name in since else {"backupmode": "full"}
        node = ET.SubElement(disks, "disk", {"name": name, "backup": "yes", "type": "file", **mode})
        ET.SubElement(node, "driver", {"type": "qcow2"})
        ET.SubElement(node, "scratch", {"file": path})
    for name in left_out:
        ET.SubElement(disks, "disk", {"name": name, "backup": "no"})
    return ET.tostring(backup, encoding="unicode")


def checkpoint_xml(name: str, tracked: Sequence[str], left_out: Sequence[str]) -> str:
    """``<domaincheckpoint>`` that starts a bitmap on the ``tracked`` disks only."""
    checkpoint = ET.Element("domaincheckpoint")
    ET.SubElement(checkpoint, "name").text = name
    disks = ET.SubElement(checkpoint, "disks")
    for disk in tracked:
        ET.SubElement(disks, "disk", {"name": disk, "checkpoint": "bitmap"})
    for disk in left_out:
        ET.SubElement(disks, "disk", {"name": disk, "checkpoint": "no"})
    return ET.tostring(checkpoint, encoding="unicode")


def read_job(xml: str) -> Job | None:
    """A running job from ``backupGetXMLDesc``; None for a push-mode job, which serves nothing."""
    backup = ET.fromstring(xml)  # noqa: S314 - see the import
    server = backup.find("server")
    if backup.get("mode") != "pull" or server is None:
        return None
    if server.get("transport") == "unix":
        address = Address(unix_path=server.get("socket"))
    else:
        address = Address(host=server.get("name"), port=int(server.get("port", "0")))
    disks = []
    for node in backup.findall("disks/disk"):
        if node.get("backup") != "yes":
            continue
        scratch = node.find("scratch")
        name = node.get("name", "")
        disks.append(
            JobDisk(
                name=name,
                scratch=(scratch.get("file") or scratch.get("dev") or "") if scratch is not None else "",
                export=node.get("exportname") or name,
                since=node.get("incremental"),
                bitmap=node.get("exportbitmap"),
            )
        )
    return Job(address, tuple(disks))
