"""The guest's disk image: the KVM lab's kernel and initramfs behind a boot loader, as any cloud boots it.

::

    0        master boot record, one FAT partition        from 1 MiB  boot loader, kernel, initramfs
    32 MiB   the guest's boot counter                     from 33 MiB records, then the area of random writes

What lies before 32 MiB is never written by the guest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.initramfs import BootFiles, ensure_boot_files
from labs.kvm.layout import cache_dir

BASE_MIB = 32
IMAGE_MIB = 64
SECTOR_BYTES = 512
PARTITION_SECTORS = (2048, (BASE_MIB - 1) * 2048)
"""First sector and count."""
BOOT_RECORD = Path("/usr/lib/syslinux/mbr/mbr.bin")
FAT16_LBA = 0x0E
FORMAT_VERSION = 1


def command_line(guest_prefix: str) -> str:
    """Return the guest's kernel command line for the provider network ``guest_prefix``.0/24."""
    return f"console=ttyS0 quiet panic=-1 wb.rate=5 wb.base={BASE_MIB} wb.net={guest_prefix}"


def boot_record(code: bytes) -> bytes:
    """Return sector 0: ``code`` and one active FAT partition. Glance refuses a boot sector without a table."""
    first, count = PARTITION_SECTORS
    chs = b"\xfe\xff\xff"  # beyond what cylinder, head, sector can say
    entry = struct.pack("<B3sB3sII", 0x80, chs, FAT16_LBA, chs, first, count)
    return code[:440].ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa"


def ensure_image(guest_prefix: str) -> Path:
    """Return the raw image, building it unless the cache has it; 2 s."""
    boot = ensure_boot_files()
    line = command_line(guest_prefix)
    return ensure_bootable("guest", boot, line)


def ensure_bootable(stem: str, boot: BootFiles, line: str) -> Path:
    """Return the raw image ``<stem>-<hash>.raw`` that boots these files, building it unless the cache has it."""
    identity = f"{FORMAT_VERSION} {boot.kernel.name} {boot.initrd.name} {line}"
    target = cache_dir() / f"{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.raw"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    config = target.with_suffix(f".cfg.{os.getpid()}")
    try:
        _build(partial, config, boot.kernel, boot.initrd, line)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        config.unlink(missing_ok=True)
    return target


def _build(image: Path, config: Path, kernel: Path, initrd: Path, line: str) -> None:
    first, count = PARTITION_SECTORS
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
        file.write(boot_record(BOOT_RECORD.read_bytes()))
    fat = ["-F", "16", "-h", str(first), "--offset", str(first), "-n", "LABGUEST", str(image), str(count // 2)]
    _call("mkfs.fat", *fat)
    inside = f"{image}@@{first * SECTOR_BYTES}"
    config.write_text(f"DEFAULT lab\nPROMPT 0\nLABEL lab\n KERNEL vmlinuz\n APPEND initrd=initrd {line}\n")
    for source, name in ((kernel, "vmlinuz"), (initrd, "initrd"), (config, "syslinux.cfg")):
        _call("mcopy", "-i", inside, str(source), f"::{name}")
    _call("syslinux", "--offset", str(first * SECTOR_BYTES), "--install", str(image))


def _call(*command: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if shutil.which(command[0], path=path) is None:
        raise LabError(f"{command[0]} is missing; run deploy/install-system --openstack")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path})
    if done.returncode:
        raise LabError(f"{' '.join(command[:3])}: {done.stderr.strip() or done.stdout.strip()}")
