"""The lab guest's kernel and initramfs: Debian's cloud kernel as it is, busybox, a few modules and one script.

The archive is written here, byte for byte the same for the same inputs, and cached under a name made of their hash,
so that a changed script, kernel or busybox makes a new one and nothing stale is ever booted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.layout import cache_dir

BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("guest-init.sh")
GROUPS = {
    "disk": ("virtio_pci", "virtio_blk"),
    "scsi": ("virtio_scsi", "sd_mod"),
    "button": ("button", "evdev"),
    "net": ("virtio_net",),
}
"""Modules the guest loads, by when it loads them; what they depend on is looked up."""

INSTALL = "run deploy/install-system"


@dataclass(frozen=True)
class BootFiles:
    """What a domain's <kernel> and <initrd> point at."""

    kernel: Path
    initrd: Path


def newest_kernel() -> Path:
    """Return the newest Debian cloud kernel in /boot that has its modules. Raises LabError when there is none."""
    found = [path for path in Path("/boot").glob("vmlinuz-*-cloud-amd64") if modules_of(path).is_dir()]
    if not found:
        raise LabError(f"no Debian cloud kernel with modules in /boot; {INSTALL}")
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def modules_of(kernel: Path) -> Path:
    """Return the module directory of ``kernel``."""
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


def load_order(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the files of ``names`` and all they depend on, in loading order (from modules.dep)."""
    depends: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        target, _, rest = line.partition(":")
        depends[target] = rest.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in depends}
    order: list[str] = []
    for name in names:
        if name not in by_name:
            continue  # built into this kernel
        path = by_name[name]
        order += [entry for entry in (*reversed(depends[path]), path) if entry not in order]
    compressed = [entry for entry in order if not entry.endswith(".ko")]
    if compressed:
        raise LabError(f"compressed kernel modules are not supported: {compressed[0]}")
    return [modules / entry for entry in order]


def ensure_boot_files() -> BootFiles:
    """Return kernel and initramfs, building the latter unless the cache has it."""
    kernel = newest_kernel()
    return BootFiles(kernel, ensure_archive("initramfs", _contents(modules_of(kernel), static_busybox())))


def static_busybox() -> bytes:
    """Return the program. Raises LabError when it is missing, or needs libraries."""
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing; {INSTALL}")
    busybox = BUSYBOX.read_bytes()
    if b"/ld-linux" in busybox:
        raise LabError(f"{BUSYBOX} is linked dynamically, busybox-static is needed; {INSTALL}")
    return busybox


def ensure_archive(stem: str, entries: list[tuple[str, int, bytes]], *, level: int = 1) -> Path:
    """Return the compressed archive of these entries, ``<stem>-<hash>.cpio.gz`` in the cache."""
    content = archive(entries)
    target = cache_dir() / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.cpio.gz"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(gzip.compress(content, compresslevel=level, mtime=0))
        partial.replace(target)
    return target


def _contents(modules: Path, busybox: bytes) -> list[tuple[str, int, bytes]]:
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


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive in the "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format)."""
    output = bytearray()
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        links = 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        output += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        output += b"\0" * (-len(output) % 4)
        output += content
        output += b"\0" * (-len(output) % 4)
    return bytes(output)
