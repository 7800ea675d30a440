"""Storage pools of a cloud: "default" on the lab's disk, "small" on a tmpfs that can be full."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt

from labs.kvm.layout import CloudLayout

SMALL_INITIAL_BYTES = 1 << 20
VOLUME = """<volume><name>{name}</name><capacity unit='bytes'>{size}</capacity><allocation unit='bytes'>0</allocation>
<target><format type='{format}'/>{compat}</target></volume>"""


def ensure_pool(connection: libvirt.virConnect, name: str, path: Path) -> None:
    """Define the directory pool ``name`` at ``path`` and have it active and started with the daemon."""
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        pool = connection.storagePoolDefineXML(
            f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"
        )
    if not pool.isActive():
        pool.create()
    pool.setAutostart(True)


def ensure_volume(connection: libvirt.virConnect, pool: str, name: str, format_: str, size_bytes: int) -> Path:
    """Create a sparse volume unless it exists, and return its path. qcow2 is made v3, which can hold bitmaps."""
    where = connection.storagePoolLookupByName(pool)
    where.refresh()
    if name not in where.listVolumes():
        compat = "<compat>1.1</compat>" if format_ == "qcow2" else ""
        where.createXML(VOLUME.format(name=name, size=size_bytes, format=format_, compat=compat))
    return Path(where.storageVolLookupByName(name).path())


def mount_small(cloud: CloudLayout) -> None:
    """Mount the tmpfs of the pool "small"; before the daemon starts, so that its namespace has it too."""
    if not cloud.small.is_mount():
        _mount("-t", "tmpfs", "-o", f"size={SMALL_INITIAL_BYTES},mode=0755", "whimbrel-lab", str(cloud.small))


def resize_small(cloud: CloudLayout, size_bytes: int) -> None:
    """Set the size of the pool "small". A remount changes the one tmpfs behind all namespaces."""
    _mount("-o", f"remount,size={size_bytes}", str(cloud.small))


def unmount_small(cloud: CloudLayout) -> None:
    """Unmount the tmpfs; its content is gone. Not mounted is fine."""
    if cloud.small.is_mount():
        subprocess.run(["umount", str(cloud.small)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
