"""The clouds' own programs: an environment of their own, installed from a lock file with hashes.

It is made with Debian's Python, because librados, librbd and the libvirt binding come compiled for that one; they are
linked into it one by one, so that no other Debian package gets in.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.layout import REPOSITORY
from labs.openstack.layout import venv_dir

LOCK_FILE = Path(__file__).with_name("requirements.lock")
DEBIAN_PYTHON = Path("/usr/bin/python3.11")
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")
BINDINGS = ("rados.*.so", "rbd.*.so", "libvirtmod.*.so", "libvirtmod_qemu.*.so", "libvirt.py", "libvirt_qemu.py")
INSTALL = "deploy/install-system --openstack"


def check_system() -> None:
    """Raise LabError with the command to type when a Debian package is missing."""
    done = subprocess.run(
        [REPOSITORY / "deploy/install-system", "--check", "--openstack"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"Debian packages are missing; run {INSTALL}\n{done.stderr.strip()}")
    if not DEBIAN_PYTHON.exists():
        raise LabError(f"{DEBIAN_PYTHON} is missing: the lab needs Debian 12's Python for its librbd")


def lock_digest() -> str:
    """Return 16 hex digits that change with the lock file."""
    return hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()[:16]


def _uv() -> str:
    own = REPOSITORY / ".uv/bin/uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        raise LabError("uv is missing; run make setup")
    return found


def ensure_venv(say: Callable[[str], None]) -> Path:
    """Make the environment unless it is there and whole; return its directory. About 70 s without uv's cache."""
    venv = venv_dir()
    stamp = venv / "whimbrel-lock"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / f".{venv.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == lock_digest():
            return venv
        say(f"installing OpenStack into {venv}")
        if not (venv / "bin/python").exists():
            _call([_uv(), "venv", "--quiet", "--python", str(DEBIAN_PYTHON), str(venv)])
        python = str(venv / "bin/python")
        sync = [_uv(), "pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", python]
        _call([*sync, str(LOCK_FILE)])
        site = venv / "lib/python3.11/site-packages"
        for pattern in BINDINGS:
            for source in DIST_PACKAGES.glob(pattern):
                (site / source.name).unlink(missing_ok=True)
                (site / source.name).symlink_to(source)
        _call([python, "-c", "import rados, rbd, libvirt, libvirt_qemu"])
        stamp.write_text(lock_digest())
    return venv


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command[:4])} failed:\n{done.stderr[-3000:]}")
