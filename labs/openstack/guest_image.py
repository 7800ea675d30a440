"""The guest's disk image: the KVM lab's kernel and initramfs behind a boot loader, as any cloud boots it.

::

    0        master boot record, one FAT partition        from 1 MiB  boot loader, kernel, initramfs
    32 MiB   the guest's boot counter                     from 33 MiB records, then the area of random writes

What lies before 32 MiB is never written by the guest. The image of mover servers is the product's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from labs.kvm.initramfs import ensure_boot_files
from labs.kvm.layout import cache_dir
from whimbrel.moverimage import bootdisk
from whimbrel.moverimage.contents import of_this_machine

BASE_MIB = 32
IMAGE_MIB = 64
FORMAT_VERSION = 2


def command_line(guest_prefix: str) -> str:
    """Return the guest's kernel command line for the provider network ``guest_prefix``.0/24."""
    return f"console=ttyS0 quiet panic=-1 wb.rate=5 wb.base={BASE_MIB} wb.net={guest_prefix}"


def ensure_image(guest_prefix: str) -> Path:
    """Return the raw image, building it unless the cache has it; 2 s. Raises PreconditionFailed for what is missing."""
    boot = ensure_boot_files()
    line = command_line(guest_prefix)

    def write(target: Path) -> None:
        size = {"partition_end_mib": BASE_MIB, "image_mib": IMAGE_MIB}
        bootdisk.write(target, boot.kernel, boot.initrd.read_bytes(), line, **size)

    return _ensure("guest", f"{boot.kernel.name} {boot.initrd.name} {line}", write)


def ensure_mover(nic_options: str) -> Path:
    """Return the image of mover servers, as ``whimbrel mover-image`` writes it; 4 s."""
    image = of_this_machine(nic_options)
    return _ensure("mover", image.digest, image.write)


def _ensure(stem: str, identity: str, write: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {identity}".encode()).hexdigest()
    target = cache_dir() / f"{stem}-{digest[:16]}.raw"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target)
    return target
