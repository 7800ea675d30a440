"""What Glance has to be told about the image."""

from __future__ import annotations

import shlex
from pathlib import Path

IMAGE_NAME = "whimbrel-mover"
PROPERTIES = {
    "hw_disk_bus": "scsi",
    "hw_scsi_model": "virtio-scsi",
    "hw_cdrom_bus": "scsi",
    "hw_vif_model": "virtio",
    "hw_rng_model": "virtio",
    "os_type": "linux",
}
"""SCSI disks take no PCI slot each, and tell their volume's whole id."""


def command(image: Path) -> list[str]:
    """Lines of the command that uploads it, for a shell."""
    properties = [f"--property {key}={value}" for key, value in PROPERTIES.items()]
    pairs = [" ".join(properties[at : at + 2]) for at in range(0, len(properties), 2)]
    first = f"openstack image create --disk-format raw --container-format bare --file {shlex.quote(str(image))}"
    lines = [first, *(f"  {words}" for words in [*pairs, IMAGE_NAME])]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
