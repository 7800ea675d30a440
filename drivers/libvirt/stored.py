"""Images by pool and name, as two hosts on one storage find them, and which domains open them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import libvirt

from drivers.libvirt import domain_xml, domains, images
from drivers.libvirt.images import ImageFacts
from whimbrel.errors import NotFound
from whimbrel.model.handover import StoredDisk, StoredImage
from whimbrel.model.vm import DiskSpec

T = TypeVar("T")
BUSY_WAIT_S = 20.0
BUSY_POLL_S = 0.02


def when_idle(act: Callable[[], T]) -> T:
    """Do something to a pool; while somebody makes or deletes a volume there, libvirt refuses, and it is waited for."""
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            return act()
        except libvirt.libvirtError as error:
            if "asynchronous jobs" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_POLL_S)


def volume_of(pool: Any, name: str, *, again: bool = False) -> Any | None:
    """The volume; the pool is looked at anew when libvirt's last look did not see it, or with ``again`` at once."""
    if again:
        when_idle(pool.refresh)
    for last in (again, True):
        try:
            return pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise
        if last:
            return None
        when_idle(pool.refresh)
    return None


def resolved(conn: Any, image: StoredImage, pools: Mapping[str, str]) -> ImageFacts:
    """What this host sees of the image now. Raises NotFound."""
    if image.pool is None:
        raise NotFound(f"image {image.handle} is in no storage pool")
    name = pools.get(image.pool, image.pool)
    try:
        pool = conn.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise NotFound(f"there is no storage pool {name}", pool=name, cause=error) from error
        raise
    volume = volume_of(pool, image.handle)
    if volume is None:
        raise NotFound(f"pool {name} does not show {image.handle}", pool=name)
    try:
        return images.volume_facts(volume)  # libvirt looks at the file itself for this
    except libvirt.libvirtError as error:
        if volume_of(pool, image.handle, again=True) is not None:
            raise
        raise NotFound(f"pool {name} does not show {image.handle} any more", pool=name, cause=error) from error


def identity(facts: ImageFacts) -> str:
    """Size and times to the nanosecond: both hosts read them of one inode, and a copy has a change time of its own."""
    return f"{facts.name} {facts.capacity_bytes} {facts.physical_bytes} {facts.changed_at}"


def _image(conn: Any, path: str) -> StoredImage:
    facts = images.find_volume(conn, path)
    if facts is None:
        return StoredImage(pool=None, handle=path, size_bytes=0, format="other")
    return StoredImage(
        pool=facts.pool,
        handle=facts.name,
        size_bytes=facts.capacity_bytes,
        format=images.disk_format(facts.format, facts.compat),
        identity=identity(facts),
    )


def stored_disk(conn: Any, spec: DiskSpec) -> StoredDisk:
    """A disk with its images; one outside of all pools has none to name it by."""
    image = _image(conn, spec.location)
    chain = tuple(_image(conn, path) for path in spec.backing_chain)
    if image.pool is not None:
        spec = spec.model_copy(update={"size_bytes": image.size_bytes, "format": image.format, "pool": image.pool})
    return StoredDisk(spec=spec, image=image, chain=chain)


def open_images(conn: Any, domain: Any, disks: Sequence[Sequence[ImageFacts]], *, written: bool = False) -> bool:
    """Whether the domain has one of the disks in a way that conflicts; ``disks`` are chains, the top image first.

    A template that two VMs only read does not conflict; writing one's template, or running above one's disk, does.
    """
    xml = domain_xml.parse(domains.definition(domain) if written else domain.XMLDesc())
    tops = {chain[0].path for chain in disks}
    every = {image.path for chain in disks for image in chain}
    for disk in domain_xml.disks(xml):
        if disk.device not in {"disk", "lun"} or not disk.location:
            continue
        with suppress(libvirt.libvirtError):
            top = images.resolve(conn, disk)
            below = disk.chain or images.chain_below(conn, images.find_volume(conn, top), ())[0]
            if (top in every and not disk.read_only) or top in tops or tops & set(below):
                return True
    return False
