"""Whether guests may use KVM: only after a probe that boots one.

A /dev/kvm that opens, and a QEMU that says "enabled", prove nothing: nested machines are known where the firmware
runs and the kernel then hangs. So the lab's own kernel must reach user space under KVM once per boot of this machine.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import Literal

from labs.kvm.errors import LabError
from labs.kvm.initramfs import BootFiles, ensure_boot_files
from labs.kvm.layout import cache_dir

VirtType = Literal["qemu", "kvm"]
PROBE_TIMEOUT_S = 20.0
USERSPACE = b"WB UP "
CHOICES = ("tcg", "kvm", "auto")


def virt_type(choice: str | None = None) -> VirtType:
    """Return libvirt's domain type for ``choice``, by default ``$WHIMBREL_LAB_ACCEL``, else "tcg".

    ``tcg`` never probes, ``auto`` probes and falls back, ``kvm`` raises LabError when the probe fails.
    """
    wanted = choice or os.environ.get("WHIMBREL_LAB_ACCEL") or "tcg"
    if wanted not in CHOICES:
        raise LabError(f"WHIMBREL_LAB_ACCEL={wanted!r}: one of {', '.join(CHOICES)}")
    if wanted == "tcg":
        return "qemu"
    if kvm_boots():
        return "kvm"
    if wanted == "kvm":
        raise LabError(
            f"no guest reached user space under KVM within {PROBE_TIMEOUT_S:.0f} s; use WHIMBREL_LAB_ACCEL=tcg"
        )
    return "qemu"


def kvm_boots() -> bool:
    """Tell whether the lab's kernel boots under KVM; probed once per boot of this machine, then remembered."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = cache_dir() / f"accel-{boot_id}"
    if verdict.exists():
        return verdict.read_text() == "kvm"
    works = os.access("/dev/kvm", os.R_OK | os.W_OK) and boots("kvm", ensure_boot_files(), PROBE_TIMEOUT_S)
    verdict.parent.mkdir(parents=True, exist_ok=True)
    verdict.write_text("kvm" if works else "tcg")
    return works


def boots(accelerator: Literal["kvm", "tcg"], files: BootFiles, timeout_s: float) -> bool:
    """Boot the lab's kernel without disks and tell whether its user space spoke within ``timeout_s``."""
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", accelerator, "-m", "96", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-kernel", str(files.kernel), "-initrd", str(files.initrd)),
        *("-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio", "-no-reboot"),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    try:
        return _reads(process, USERSPACE, timeout_s)
    finally:
        process.kill()
        process.communicate()


def _reads(process: subprocess.Popen[bytes], wanted: bytes, timeout_s: float) -> bool:
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + timeout_s
    with contextlib.closing(selectors.DefaultSelector()) as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                return False
            piece = process.stdout.read(4096)
            if not piece:
                return False
            seen += piece
            if wanted in seen:
                return True
    return False
