"""A raw disk image that boots a kernel with its first file system by BIOS, as any cloud does.

::

    0        master boot record, one FAT partition       from 1 MiB  boot loader, kernel, initramfs

For the same parts and the same Debian packages it is the same to the byte.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from whimbrel.errors import PreconditionFailed
from whimbrel.moverimage import debian

SECTOR_BYTES = 512
SECTORS_PER_MIB = 2048
FIRST_SECTOR = SECTORS_PER_MIB
BOOT_RECORD = Path("/usr/lib/syslinux/mbr/mbr.bin")
FAT16_LBA = 0x0E
PROGRAMS = {"mkfs.fat": "dosfstools", "mcopy": "mtools", "syslinux": "syslinux"}
"""What it is written with, by name; the Debian packages that have it."""
FILES = {BOOT_RECORD: "syslinux-common"}
NO_TIME = {"SOURCE_DATE_EPOCH": "1577836800", "TZ": "UTC"}
"""2020-01-01 for every file in it (https://reproducible-builds.org/specs/source-date-epoch/, which mtools follows)."""


def boot_record(code: bytes, end_mib: int) -> bytes:
    """Return sector 0: ``code`` and one active FAT partition. Glance refuses a boot sector without a table."""
    count = end_mib * SECTORS_PER_MIB - FIRST_SECTOR
    chs = b"\xfe\xff\xff"  # beyond what cylinder, head, sector can say
    entry = struct.pack("<B3sB3sII", 0x80, chs, FAT16_LBA, chs, FIRST_SECTOR, count)
    return code[:440].ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa"


def write(target: Path, kernel: Path, initrd: bytes, line: str, *, partition_end_mib: int, image_mib: int) -> None:
    """Write the image, whole or not at all. Raises PreconditionFailed (a program is missing, or fails), OSError."""
    count = partition_end_mib * SECTORS_PER_MIB - FIRST_SECTOR
    first = FIRST_SECTOR * SECTOR_BYTES
    if not BOOT_RECORD.exists():
        raise debian.lacking([str(BOOT_RECORD)], [FILES[BOOT_RECORD]])
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        image, packed, config = (Path(beside) / name for name in ("image", "initrd", "syslinux.cfg"))
        with image.open("wb") as file:
            file.truncate(image_mib << 20)
            file.write(boot_record(BOOT_RECORD.read_bytes(), partition_end_mib))
        packed.write_bytes(initrd)
        config.write_text(f"DEFAULT boot\nPROMPT 0\nLABEL boot\n KERNEL vmlinuz\n APPEND initrd=initrd {line}\n")
        fat = ["-F", "16", "-h", str(FIRST_SECTOR), "--offset", str(FIRST_SECTOR), "-n", "BOOT", "--invariant"]
        _call("mkfs.fat", *fat, str(image), str(count // 2))
        for source, name in ((kernel, "vmlinuz"), (packed, "initrd"), (config, "syslinux.cfg")):
            _call("mcopy", "-i", f"{image}@@{first}", str(source), f"::{name}")
        _call("syslinux", "--offset", str(first), "--install", str(image))
        image.replace(target)


def _call(name: str, *words: str) -> None:
    command = [str(debian.program(name, PROGRAMS[name])), *words]
    surroundings = debian.environment() | NO_TIME
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        raise PreconditionFailed(
            f"{name} failed: {done.stderr.strip() or done.stdout.strip()}",
            action="see that there is room for the image; else report this with the versions of the packages",
        )
