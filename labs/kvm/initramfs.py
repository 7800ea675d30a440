"""The lab guest's kernel and initramfs: Debian's cloud kernel as it is, busybox, a few modules and one script.

The archive is written here, byte for byte the same for the same inputs, and cached under a name made of their hash,
so that a changed script, kernel or busybox makes a new one and nothing stale is ever booted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.layout import cache_dir
from whimbrel.moverimage.cpio import Entry, archive
from whimbrel.moverimage.debian import load_order, modules_of, newest_kernel, static_busybox

INIT = Path(__file__).with_name("guest-init.sh")
GROUPS = {
    "disk": ("virtio_pci", "virtio_blk"),
    "scsi": ("virtio_scsi", "sd_mod"),
    "button": ("button", "evdev"),
    "net": ("virtio_net",),
}
"""Modules the guest loads, by when it loads them; what they depend on is looked up."""


@dataclass(frozen=True)
class BootFiles:
    """What a domain's <kernel> and <initrd> point at."""

    kernel: Path
    initrd: Path


def ensure_boot_files() -> BootFiles:
    """Return kernel and initramfs, building the latter unless the cache has it."""
    kernel = newest_kernel()
    return BootFiles(kernel, ensure_archive("initramfs", _contents(modules_of(kernel), static_busybox())))


def ensure_archive(stem: str, entries: list[Entry]) -> Path:
    """Return the compressed archive of these entries, ``<stem>-<hash>.cpio.gz`` in the cache."""
    content = archive(entries)
    target = cache_dir() / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.cpio.gz"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
        partial.replace(target)
    return target


def _contents(modules: Path, busybox: bytes) -> list[Entry]:
    """Return (name, mode, content) of each entry; directories have no content."""
    directories = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "proc", "sys", "tmp")]
    files = [("init", 0o100755, INIT.read_bytes()), ("bin/busybox", 0o100755, busybox)]
    packed: set[str] = set()
    for group, names in GROUPS.items():
        order = load_order(modules, names)
        files.append((f"lib/{group}.order", 0o100644, "".join(f"{path.name}\n" for path in order).encode()))
        files += [(f"lib/{path.name}", 0o100644, path.read_bytes()) for path in order if path.name not in packed]
        packed.update(path.name for path in order)
    return directories + files
