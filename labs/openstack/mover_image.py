"""The image of a mover server: Debian's cloud kernel, busybox, QEMU's storage daemon, and one script.

A mover server is booted in a cloud whose volumes no worker reaches directly (docs/openstack.md). Nothing is in the
image that is secret or belongs to one cloud: what a server serves, to whom and at which address is in its config drive.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.initramfs import (
    INSTALL,
    BootFiles,
    ensure_archive,
    load_order,
    modules_of,
    newest_kernel,
    static_busybox,
)
from labs.openstack.guest_image import ensure_bootable

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
PROGRAMS = ("qemu-storage-daemon", "certtool")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
PROPERTIES = {
    "hw_disk_bus": "scsi",
    "hw_scsi_model": "virtio-scsi",
    "hw_cdrom_bus": "scsi",
    "hw_vif_model": "virtio",
    "hw_rng_model": "virtio",
    "os_type": "linux",
}
"""What Glance has to be told: SCSI disks take no PCI slot each, and tell their volume's whole id."""


def ensure_image(nic_options: str = "") -> Path:
    """Return the raw image, building it unless the cache has it; 3 s. Raises LabError for what is missing.

    ``nic_options`` are parameters of virtio_net, such as ``csum=0``.
    """
    kernel = newest_kernel()
    boot = BootFiles(kernel, ensure_archive("mover", _contents(modules_of(kernel), nic_options), level=6))
    return ensure_bootable("mover", boot, "console=tty0 console=ttyS0 quiet loglevel=1 panic=10")


def _contents(modules: Path, nic_options: str) -> list[tuple[str, int, bytes]]:
    files: dict[str, bytes] = {"init": INIT.read_bytes(), "bin/busybox": static_busybox()}
    for order, names, options in (("early", MODULES, ""), ("late", LATE_MODULES, nic_options)):
        paths = load_order(modules, names)
        files |= {f"lib/modules/{path.name}": path.read_bytes() for path in paths}
        lines = [f"{path.name} {options if path.stem in names else ''}".strip() for path in paths]
        files[f"lib/modules/{order}.order"] = "".join(f"{line}\n" for line in lines).encode()
    for program in PROGRAMS:
        where = shutil.which(program)
        if where is None:
            raise LabError(f"{program} is missing; {INSTALL}")
        files[f"usr/bin/{program}"] = Path(where).read_bytes()
        files |= {str(path).lstrip("/"): path.read_bytes() for path in (*_libraries(Path(where)), LOADER)}
    files["tls/dh-params.pem"] = _group()
    parents = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    directories = sorted(parents | {"config", "dev", "proc", "sys", "tmp"})
    runs = ("init", "bin/", "usr/bin/", "lib64/")
    return [(name, 0o040755, b"") for name in directories] + [
        (name, 0o100755 if name.startswith(runs) else 0o100644, content) for name, content in sorted(files.items())
    ]


def _libraries(program: Path) -> list[Path]:
    """Shared libraries by the paths at which the loader looks for them."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if done.returncode or "not found" in done.stdout:
        raise LabError(f"ldd {program}: {done.stderr or done.stdout}")
    return [Path(path) for path in re.findall(r"=> (/\S+)", done.stdout)]


def _group() -> bytes:
    """A group of RFC 7919 for Diffie-Hellman; without the file QEMU 7.2 makes one itself, for seconds."""
    done = subprocess.run(["certtool", "--get-dh-params", "--bits=2048"], capture_output=True, check=False)
    if done.returncode or b"BEGIN DH PARAMETERS" not in done.stdout:
        raise LabError(f"certtool --get-dh-params: {done.stderr.decode(errors='replace')}")
    return done.stdout
