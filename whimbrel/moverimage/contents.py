"""What is in the image of a mover server: Debian's cloud kernel, busybox, QEMU's storage daemon, and one script.

A mover server is booted in a cloud whose volumes no worker reaches directly (docs/openstack.md). Nothing is in the
image that is secret or belongs to one cloud: what a server serves, to whom and at which address is in its config drive.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from whimbrel.errors import InvalidPlan, PreconditionFailed
from whimbrel.moverimage import bootdisk, debian
from whimbrel.moverimage.cpio import Entry, archive

INIT = Path(__file__).with_name("mover-init.sh")
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "ata_piix",
    "isofs",
    "vfat",
    "nls_ascii",
    "virtio_rng",
)
LATE_MODULES = ("virtio_net",)
PROGRAMS = {"qemu-storage-daemon": "qemu-system-common", "certtool": "gnutls-bin"}
"""Those that run in it, and the Debian packages that have them."""
KERNEL_LINE = "console=tty0 console=ttyS0 quiet loglevel=1 panic=10"
IMAGE_MIB = 64
NIC_OPTIONS = re.compile(r"([a-z0-9_]+=[0-9]+( [a-z0-9_]+=[0-9]+)*)?")


@dataclass(frozen=True)
class MoverImage:
    """All that the image is made of."""

    kernel: Path
    initrd: bytes
    """Compressed archive."""
    sources: tuple[Path, ...]
    """Files of this machine that are in it, as they are."""

    @property
    def digest(self) -> str:
        """SHA-256 of what it boots."""
        summed = hashlib.sha256(f"{KERNEL_LINE}\n".encode())
        summed.update(self.kernel.read_bytes())
        summed.update(self.initrd)
        return summed.hexdigest()

    def write(self, target: Path) -> None:
        """Write the raw image, whole or not at all. Raises PreconditionFailed, OSError."""
        size = {"partition_end_mib": IMAGE_MIB, "image_mib": IMAGE_MIB}
        bootdisk.write(target, self.kernel, self.initrd, KERNEL_LINE, **size)

    def packages(self) -> list[debian.Package]:
        """Debian packages that it is made of, and written with."""
        tools = [debian.program(name, package) for name, package in bootdisk.PROGRAMS.items()]
        return debian.packages_of([self.kernel, *self.sources, *tools, bootdisk.BOOT_RECORD])


def of_this_machine(nic_options: str = "") -> MoverImage:
    """Return the image that this machine's packages make; 3 s. Raises PreconditionFailed for all that is missing.

    ``nic_options`` are parameters of virtio_net, such as ``csum=0``; InvalidPlan for what is none.
    """
    if not NIC_OPTIONS.fullmatch(nic_options):
        raise InvalidPlan(f"{nic_options!r} are no options of a module", action="write them as in csum=0 gso=0")
    check()
    kernel = debian.newest_kernel()
    entries, sources = _contents(debian.modules_of(kernel), nic_options)
    return MoverImage(kernel, gzip.compress(archive(entries), compresslevel=6, mtime=0), tuple(sources))


def check() -> None:
    """Raises PreconditionFailed that names all packages that are missing."""
    missing: dict[str, str] = {}
    try:
        debian.newest_kernel()
    except PreconditionFailed:
        missing["a cloud kernel"] = debian.KERNEL_PACKAGE
    try:
        debian.static_busybox()
    except PreconditionFailed:
        missing["a static busybox"] = "busybox-static"
    for name, package in (PROGRAMS | bootdisk.PROGRAMS).items():
        try:
            debian.program(name, package)
        except PreconditionFailed:
            missing[name] = package
    missing |= {str(path): package for path, package in bootdisk.FILES.items() if not path.exists()}
    if missing:
        raise debian.lacking(missing, missing.values())


def _contents(modules: Path, nic_options: str) -> tuple[list[Entry], list[Path]]:
    """The archive's entries, and the files of this machine among them."""
    files: dict[str, bytes] = {"init": INIT.read_bytes(), "bin/busybox": debian.static_busybox()}
    sources = [debian.BUSYBOX]
    for order, names, options in (("early", MODULES, ""), ("late", LATE_MODULES, nic_options)):
        paths = debian.load_order(modules, names)
        files |= {f"lib/modules/{path.name}": path.read_bytes() for path in paths}
        lines = [f"{path.name} {options if path.stem in names else ''}".strip() for path in paths]
        files[f"lib/modules/{order}.order"] = "".join(f"{line}\n" for line in lines).encode()
        sources += paths
    for name, package in PROGRAMS.items():
        where = debian.program(name, package)
        files[f"usr/bin/{name}"] = where.read_bytes()
        libraries = debian.libraries(where)
        files |= {str(path).lstrip("/"): path.read_bytes() for path in libraries}
        sources += [where, *libraries]
    files["tls/dh-params.pem"] = _group()
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    directories = sorted(parents | {"config", "dev", "proc", "sys", "tmp"})
    runs = ("init", "bin/", "usr/bin/", "lib64/")
    entries = [(name, 0o040755, b"") for name in directories] + [
        (name, 0o100755 if name.startswith(runs) else 0o100644, content) for name, content in sorted(files.items())
    ]
    return entries, sources


def _group() -> bytes:
    """A group of RFC 7919 for Diffie-Hellman; without the file QEMU 7.2 makes one itself, for seconds."""
    certtool = debian.program("certtool", PROGRAMS["certtool"])
    done = subprocess.run([str(certtool), "--get-dh-params", "--bits=2048"], capture_output=True, check=False)
    if done.returncode or b"BEGIN DH PARAMETERS" not in done.stdout:
        raise PreconditionFailed(
            f"certtool --get-dh-params failed: {done.stderr.decode(errors='replace').strip()}",
            action="install gnutls-bin of Debian 12",
        )
    return done.stdout
